//! What pods refer to: ConfigMaps, Secrets, claims with the volumes behind them, and RuntimeClasses.
//!
//! The watches of these kinds carry metadata only: they say what to ask for. An answer is kept as long
//! as a pod refers to the object. A volume is referred to through the claim that it is bound to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proto::ids::{Kind, ObjectKey, Uid};
use proto::object::{Object, Point};

use crate::references::{Binding, Reference};

/// One object that pods refer to.
#[derive(Clone, Debug, Default)]
struct Shared {
    object: Option<Arc<Object>>,
    binding: Binding,
    /// Pods that name it.
    pods: BTreeSet<Uid>,
    /// Claims that name it.
    claims: BTreeSet<Reference>,
    /// To be asked for: never was, or the watch told of a change since it last was.
    is_stale: bool,
    /// An answer came: `object` is what the API server had, also if that is nothing.
    is_known: bool,
}

impl Shared {
    fn unasked() -> Self {
        Self { is_stale: true, ..Self::default() }
    }

    /// Whether this is the volume of a claim: both must say so.
    fn is_bound_to(&self, claim: &Reference, uid: &Uid) -> bool {
        matches!(&self.binding, Binding::Volume { claim: own, uid: of } if own == claim && of == uid)
    }
}

/// An answer to a GET.
pub(crate) struct Answer {
    pub object: Arc<Object>,
    pub binding: Binding,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct SharedObjects(BTreeMap<Reference, Shared>);

impl SharedObjects {
    /// The pod names these, and none of those.
    pub(crate) fn refer(
        &mut self,
        pod: &Uid,
        names: &BTreeSet<Reference>,
        before: &BTreeSet<Reference>,
    ) {
        for reference in names {
            let shared = self.0.entry(reference.clone()).or_insert_with(Shared::unasked);
            shared.pods.insert(pod.clone());
        }
        for reference in before.difference(names) {
            if let Some(shared) = self.0.get_mut(reference) {
                shared.pods.remove(pod);
            }
            self.drop_unused(reference);
        }
    }

    fn drop_unused(&mut self, reference: &Reference) {
        let is_unused = |shared: &Shared| shared.pods.is_empty() && shared.claims.is_empty();
        if !self.0.get(reference).is_some_and(is_unused) {
            return;
        }
        let volume = self.0.remove(reference).and_then(|shared| shared.binding.into_volume());
        if let Some(volume) = volume {
            self.leave(reference, &volume);
        }
    }

    /// The claim does not lead to the volume any more.
    fn leave(&mut self, claim: &Reference, volume: &Reference) {
        if let Some(shared) = self.0.get_mut(volume) {
            shared.claims.remove(claim);
        }
        self.drop_unused(volume);
    }

    /// Pods that name the object, or a claim that does.
    fn users(&self, shared: &Shared) -> BTreeSet<Uid> {
        let through = shared.claims.iter().filter_map(|claim| self.0.get(claim));

        shared.pods.iter().chain(through.flat_map(|claim| &claim.pods)).cloned().collect()
    }

    /// What is to be asked for of all that those pods use.
    pub(crate) fn stale(&self, is_served: impl Fn(&Uid) -> bool) -> Vec<Reference> {
        let stale = self.0.iter().filter(|(_, shared)| shared.is_stale);
        let served = stale.filter(|(_, shared)| self.users(shared).iter().any(&is_served));

        served.map(|(reference, _)| reference.clone()).collect()
    }

    /// Everything is to be asked for again.
    pub(crate) fn doubt_all(&mut self) {
        for shared in self.0.values_mut() {
            shared.is_stale = true;
        }
    }

    /// Whether it is to be asked for.
    pub(crate) fn mark(&mut self, reference: &Reference, is_stale: bool) {
        if let Some(shared) = self.0.get_mut(reference) {
            shared.is_stale = is_stale;
        }
    }

    /// The watch shows the object at that point.
    pub(crate) fn seen(&mut self, reference: &Reference, point: Point) {
        let is_old = |shared: &Shared| {
            shared.object.as_ref().is_none_or(|object| object.version.point() < point)
        };
        if self.0.get(reference).is_some_and(is_old) {
            self.mark(reference, true);
        }
    }

    /// A list shows only these of a kind.
    pub(crate) fn listed(&mut self, kind: Kind, seen: &BTreeSet<String>) {
        for (reference, shared) in &mut self.0 {
            if reference.kind == kind && !seen.contains(&reference.identity()) {
                shared.is_stale = true;
            }
        }
    }

    /// Whether anything refers to it.
    pub(crate) fn contains(&self, reference: &Reference) -> bool {
        self.0.contains_key(reference)
    }

    /// The answer to a GET: pods for which it is news.
    pub(crate) fn fetched(
        &mut self,
        reference: &Reference,
        found: Option<Answer>,
    ) -> BTreeSet<Uid> {
        let Some(shared) = self.0.get_mut(reference) else { return BTreeSet::new() };
        let (object, binding) = match found {
            Some(Answer { object, binding }) => (Some(object), binding),
            None => (None, Binding::None),
        };
        let is_same = match (&shared.object, &object) {
            (Some(old), Some(new)) => {
                old.version.hash == new.version.hash && old.version.uid == new.version.uid
            }
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        let is_news = !std::mem::replace(&mut shared.is_known, true) || !is_same;
        shared.object = object;
        let volume = binding.volume().cloned();
        let before = std::mem::replace(&mut shared.binding, binding).into_volume();
        if let Some(volume) = &volume {
            let shared = self.0.entry(volume.clone()).or_insert_with(Shared::unasked);
            shared.claims.insert(reference.clone());
        }
        if let Some(before) = before.filter(|before| volume.as_ref() != Some(before)) {
            self.leave(reference, &before);
        }
        let is_held = |shared: &&Shared| is_news && shared.is_known;

        self.0.get(reference).filter(is_held).map(|shared| self.users(shared)).unwrap_or_default()
    }

    /// The objects that these references lead to, as far as they exist; `None` while the API
    /// server has not answered for all of them.
    pub(crate) fn objects<'a>(
        &'a self,
        references: impl IntoIterator<Item = &'a Reference>,
    ) -> Option<Vec<&'a Arc<Object>>> {
        let mut objects = Vec::new();
        for reference in references {
            let shared = self.known(reference)?;
            objects.extend(&shared.object);
            match self.behind(reference, shared) {
                Behind::Nothing => {}
                Behind::Unknown => return None,
                Behind::Volume(volume) => objects.push(volume),
            }
        }

        Some(objects)
    }

    /// Whether the API server has the object under `key` and one of the references leads to it; `None`
    /// while that was never answered.
    pub(crate) fn has<'a>(
        &'a self,
        mut references: impl Iterator<Item = &'a Reference>,
        key: &ObjectKey,
    ) -> Option<bool> {
        if key.kind() != Kind::PersistentVolume {
            let Some(reference) = references.find(|reference| reference.key() == *key) else {
                return Some(false);
            };
            return Some(self.known(reference)?.object.is_some());
        }
        let mut is_known = true;
        for claim in references.filter(|reference| reference.kind == Kind::PersistentVolumeClaim) {
            match self.known(claim).map(|shared| self.behind(claim, shared)) {
                Some(Behind::Volume(volume)) if volume.key == *key => return Some(true),
                Some(Behind::Volume(_) | Behind::Nothing) => {}
                Some(Behind::Unknown) | None => is_known = false,
            }
        }

        is_known.then_some(false)
    }

    fn known(&self, reference: &Reference) -> Option<&Shared> {
        self.0.get(reference).filter(|shared| shared.is_known)
    }

    fn behind(&self, claim: &Reference, shared: &Shared) -> Behind<'_> {
        let (Some(volume), Some(object)) = (shared.binding.volume(), &shared.object) else {
            return Behind::Nothing;
        };
        match self.known(volume) {
            None => Behind::Unknown,
            Some(volume) if volume.is_bound_to(claim, &object.version.uid) => {
                volume.object.as_ref().map_or(Behind::Nothing, Behind::Volume)
            }
            Some(_of_another) => Behind::Nothing,
        }
    }
}

/// What a claim leads to.
enum Behind<'a> {
    /// No claim, or one without a volume of its own.
    Nothing,
    /// The API server has not answered for the volume.
    Unknown,
    Volume(&'a Arc<Object>),
}
