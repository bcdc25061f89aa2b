//! Names of resources, as far as both ends must tell them apart.

/// What Kubernetes' own names hold, if they have a prefix at all.
const NATIVE: &str = "kubernetes.io/";
/// What names of quotas begin with.
const QUOTA: &str = "requests.";

/// Whether a resource is one that an administrator or a plugin has put on a node, as `example.com/gpu`
/// (Kubernetes: `IsExtendedResourceName`).
pub fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains(NATIVE) && !name.starts_with(QUOTA)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_resources_are_not_kubernetes_own() {
        for (name, expected) in [
            ("example.com/gpu", true),
            ("cpu", false),
            ("hugepages-2Mi", false),
            ("kubernetes.io/batteries", false),
            ("attachable-volumes.kubernetes.io/disk", false),
            ("requests.example.com/gpu", false),
        ] {
            assert_eq!(is_extended(name), expected, "{name}");
        }
    }
}
