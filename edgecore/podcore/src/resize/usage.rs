//! Limits of memory that become less: below what is used they would end a container, or be refused halfway
//! (kubelet: `validateMemoryResizeAction`).

/// A limit of memory that becomes less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lowered<'a> {
    /// The container that it is of; `None` for the pod as a whole.
    pub container: Option<&'a str>,
    /// What it becomes, in bytes.
    pub limit: i64,
    /// Bytes that are used, if that is known.
    pub used: Option<u64>,
}

/// Why limits cannot become less, if so, in the kubelet's words.
pub fn below_usage(lowered: &[Lowered<'_>]) -> Option<String> {
    let refused: Vec<String> = lowered.iter().filter_map(refusal).collect();
    match refused.as_slice() {
        [] => None,
        [one] => Some(format!("cannot decrease memory limits: {one}")),
        all => Some(format!("cannot decrease memory limits: [{}]", all.join(", "))),
    }
}

fn refusal(lowered: &Lowered<'_>) -> Option<String> {
    let Lowered { container, limit, used } = lowered;
    let named = container.map(|name| format!("container \"{name}\""));
    let Some(used) = used else {
        return Some(format!("missing {} memory usage", named.as_deref().unwrap_or("pod")));
    };
    let is_below = *used >= u64::try_from(*limit).unwrap_or(0);
    let named = named.as_deref().unwrap_or("pod");

    is_below.then(|| {
        format!("attempting to set {named} memory limit ({limit}) below current usage ({used})")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_not_lowered_to_what_is_used() {
        let pod = Lowered { container: None, limit: 100, used: Some(100) };
        let one = Lowered { container: Some("a"), limit: 50, used: Some(49) };
        assert_eq!(below_usage(&[]), None);
        assert_eq!(below_usage(&[one, Lowered { used: Some(99), ..pod }]), None);
        assert_eq!(
            below_usage(&[pod, one]).unwrap(),
            "cannot decrease memory limits: \
             attempting to set pod memory limit (100) below current usage (100)"
        );
        assert_eq!(
            below_usage(&[Lowered { used: None, ..pod }, Lowered { used: Some(60), ..one }])
                .unwrap(),
            "cannot decrease memory limits: [missing pod memory usage, \
             attempting to set container \"a\" memory limit (50) below current usage (60)]"
        );
    }
}
