//! Which steps a verb takes, in which order, and what undoes each. Pure.
//!
//! A plan is a list of stages; the steps of a stage run at once, a stage begins when the one before has ended. The order is
//! where the promises live: rules before the link is up, the intent before the first kernel object, the limits before
//! init runs.

use std::fmt;

use crate::domain::{ContainerId, ImageId};

/// What a rootfs is a snapshot of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// An unpacked image.
    Image(ImageId),
    /// Another container, running or not.
    Container(ContainerId),
}

/// A step that makes something: a single call of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Make {
    /// Folders in the pool.
    Folders,
    /// The rootfs.
    Snapshot(Origin),
    /// The record, on the disk: until then a crash forgets the container.
    FlushRecord,
    /// The rootfs's disk limit.
    LimitDisk,
    /// Host name, machine-id, keys.
    Personalise,
    /// The record beside the data.
    WriteManifest,
    /// The OCI bundle.
    WriteBundle,
    /// The helper, and the namespaces it makes.
    Prepare,
    /// The firewall's chains.
    ApplyRules,
    /// The veth pair, down.
    AttachLink,
    /// Init in its cgroup, waiting.
    CreateInit,
    /// The cgroup's limits, read back.
    LimitCgroup,
    /// The link, up.
    LinkUp,
    /// Init goes.
    StartInit,
}

/// A step that removes something; each may be done twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Remove {
    /// No removal: the tombstone, or that it is to be stopped, on the disk.
    FlushRecord,
    /// Kills what is in the cgroup, removes it.
    Cgroup,
    /// The runtime's state and namespaces.
    Runtime,
    /// The veth pair.
    Link,
    /// The chains.
    Rules,
    /// The rootfs.
    Rootfs,
    /// Manifest, logs, bundle, folders.
    Folders,
}

impl Make {
    /// What removes what a step made, also one that failed half way. `None`: nothing is left by it, or what is goes with
    /// another's.
    pub const fn undo(self) -> Option<Remove> {
        match self {
            Self::Folders => Some(Remove::Folders),
            Self::Snapshot(_) => Some(Remove::Rootfs),
            Self::Prepare => Some(Remove::Runtime),
            Self::ApplyRules => Some(Remove::Rules),
            Self::AttachLink => Some(Remove::Link),
            Self::CreateInit => Some(Remove::Cgroup),
            Self::FlushRecord
            | Self::LimitDisk
            | Self::Personalise
            | Self::WriteManifest
            | Self::WriteBundle
            | Self::LimitCgroup
            | Self::LinkUp
            | Self::StartInit => None,
        }
    }

    /// Whether what it makes lives in the kernel and dies with the machine, so that the run journal must know first.
    const fn is_of_the_kernel(self) -> bool {
        matches!(self.undo(), Some(Remove::Cgroup | Remove::Runtime | Remove::Link | Remove::Rules))
    }
}

impl fmt::Display for Make {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Folders => "make-folders",
            Self::Snapshot(_) => "snapshot",
            Self::FlushRecord => "flush-record",
            Self::LimitDisk => "limit-disk",
            Self::Personalise => "personalise",
            Self::WriteManifest => "write-manifest",
            Self::WriteBundle => "write-bundle",
            Self::Prepare => "prepare",
            Self::ApplyRules => "apply-rules",
            Self::AttachLink => "attach-link",
            Self::CreateInit => "create-init",
            Self::LimitCgroup => "limit-cgroup",
            Self::LinkUp => "link-up",
            Self::StartInit => "start-init",
        })
    }
}

impl fmt::Display for Remove {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FlushRecord => "flush-record",
            Self::Cgroup => "remove-cgroup",
            Self::Runtime => "remove-runtime",
            Self::Link => "remove-link",
            Self::Rules => "remove-rules",
            Self::Rootfs => "delete-rootfs",
            Self::Folders => "remove-folders",
        })
    }
}

/// Stages of steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<S> {
    /// In order; the steps of one stage run at once.
    pub stages: Vec<Vec<S>>,
}

impl<S: Copy> Plan<S> {
    fn of(stages: &[&[S]]) -> Self {
        Self { stages: stages.iter().map(|stage| stage.to_vec()).collect() }
    }
}

impl Plan<Make> {
    /// A rootfs from an image or another container.
    pub fn build(origin: Origin) -> Self {
        Self::of(&[
            &[Make::Folders],
            &[Make::Snapshot(origin), Make::FlushRecord],
            &[Make::LimitDisk, Make::Personalise],
            &[Make::WriteManifest],
        ])
    }

    /// A process for a container that has a rootfs. Making init takes longest, so what does not need it goes beside it. The first
    /// step of a stage is begun first: where another process does it, the second one's work costs no time.
    pub fn start() -> Self {
        Self::of(&[
            &[Make::Prepare, Make::WriteBundle],
            &[Make::CreateInit, Make::AttachLink, Make::ApplyRules, Make::FlushRecord],
            &[Make::LimitCgroup, Make::LinkUp],
            &[Make::StartInit],
        ])
    }

    /// Both at once: what does not need the rootfs is made beside it.
    pub fn build_and_start(origin: Origin) -> Self {
        Self::of(&[
            &[Make::Folders],
            &[Make::Snapshot(origin), Make::FlushRecord, Make::Prepare, Make::WriteBundle],
            &[Make::LimitDisk, Make::Personalise, Make::AttachLink],
            &[Make::CreateInit, Make::ApplyRules, Make::WriteManifest],
            &[Make::LimitCgroup, Make::LinkUp],
            &[Make::StartInit],
        ])
    }

    /// What removes all that the first `stages` stages made, in the order of an erasure: a rootfs goes when nothing holds it any
    /// more.
    pub fn undo(&self, stages: usize) -> Plan<Remove> {
        let made: Vec<Remove> = self.stages.iter().take(stages).flatten().filter_map(|step| step.undo()).collect();
        let mut plan = Plan::<Remove>::erase();
        for stage in &mut plan.stages {
            stage.retain(|step| made.contains(step));
        }
        plan.stages.retain(|stage| !stage.is_empty());
        plan
    }

    /// Whether anything in it lives in the kernel.
    pub fn is_of_the_kernel(&self) -> bool {
        self.stages.iter().flatten().any(|step| step.is_of_the_kernel())
    }
}

impl Plan<Remove> {
    /// Removes what runs: afterwards the container uses no processor, no memory and no namespace. Init must be dead or dies here.
    ///
    /// What the record says by then, that it is to be stopped, is flushed beside it: what was stopped stays so.
    pub fn let_go() -> Self {
        Self::of(&[&[Remove::FlushRecord, Remove::Cgroup, Remove::Runtime]])
    }

    /// Removes what goes by the slot. Apart from the rest because the kernel takes some 20 ms for it, in which nobody
    /// has to wait: a link without a process behind it carries nothing, and one without rules passes nothing.
    pub fn disconnect() -> Self {
        Self::of(&[&[Remove::Link, Remove::Rules]])
    }

    /// Removes all that a running container has in the kernel, at once.
    pub fn tear_down() -> Self {
        let steps = [Self::let_go(), Self::disconnect()].into_iter().flat_map(|plan| plan.stages).flatten();
        Self { stages: vec![steps.collect()] }
    }

    /// The same for a container whose slot is another's by now: what goes by the slot is left alone.
    pub fn tear_down_but_slot() -> Self {
        Self::of(&[&[Remove::Cgroup, Remove::Runtime]])
    }

    /// Removes what runs, then the data; what goes by the slot is left to [`Plan::disconnect`], beside it.
    pub fn erase_but_slot() -> Self {
        Self::let_go().then_data()
    }

    /// Removes all that a container ever had.
    pub fn erase() -> Self {
        Self::tear_down().then_data()
    }

    fn then_data(mut self) -> Self {
        self.stages.extend([vec![Remove::Rootfs], vec![Remove::Folders]]);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORIGIN: Origin = Origin::Image(ImageId::NIL);

    fn position<S: Copy + PartialEq + fmt::Display>(plan: &Plan<S>, step: S) -> usize {
        plan.stages
            .iter()
            .position(|stage| stage.contains(&step))
            .unwrap_or_else(|| panic!("{step} is not in the plan"))
    }

    #[test]
    fn no_link_is_up_before_its_rules_are_in() {
        for plan in [Plan::<Make>::start(), Plan::build_and_start(ORIGIN)] {
            assert!(position(&plan, Make::ApplyRules) < position(&plan, Make::LinkUp));
            assert!(position(&plan, Make::AttachLink) < position(&plan, Make::LinkUp));
        }
    }

    #[test]
    fn init_runs_only_with_its_limits_its_identity_and_its_link() {
        let plan = Plan::build_and_start(ORIGIN);
        let start = position(&plan, Make::StartInit);
        for step in [Make::LimitCgroup, Make::LimitDisk, Make::Personalise, Make::LinkUp] {
            assert!(position(&plan, step) < start, "{step}");
        }
        assert!(position(&plan, Make::Personalise) < position(&plan, Make::CreateInit));
        assert!(position(&plan, Make::WriteBundle) < position(&plan, Make::CreateInit));
    }

    #[test]
    fn data_goes_only_when_nothing_can_write_it_any_more() {
        for plan in [Plan::erase(), Plan::erase_but_slot()] {
            assert!(position(&plan, Remove::Cgroup) < position(&plan, Remove::Rootfs));
            assert!(position(&plan, Remove::FlushRecord) < position(&plan, Remove::Rootfs));
            assert!(position(&plan, Remove::Rootfs) < position(&plan, Remove::Folders));
        }
    }

    #[test]
    fn what_is_removed_in_two_parts_is_all_there_is() {
        let steps = |plans: &[Plan<Remove>]| {
            let steps = plans.iter().flat_map(|plan| plan.stages.iter().flatten());
            steps.map(ToString::to_string).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(steps(&[Plan::let_go(), Plan::disconnect()]), steps(&[Plan::tear_down()]));
        assert_eq!(steps(&[Plan::erase_but_slot(), Plan::disconnect()]), steps(&[Plan::erase()]));
    }

    #[test]
    fn undoing_a_whole_start_is_a_tear_down() {
        let plan = Plan::<Make>::start();
        let mut undone: Vec<_> = plan.undo(plan.stages.len()).stages.into_iter().flatten().collect();
        let mut torn: Vec<_> = Plan::tear_down().stages.into_iter().flatten().collect();
        // A start's undo makes no change to the record that would have to be flushed.
        torn.retain(|step| *step != Remove::FlushRecord);
        undone.sort_by_key(ToString::to_string);
        torn.sort_by_key(ToString::to_string);
        assert_eq!(undone, torn);
    }

    #[test]
    fn an_undo_removes_what_was_made_and_no_more_data_last() {
        let undo = Plan::build(ORIGIN).undo(2);
        assert_eq!(undo.stages, [vec![Remove::Rootfs], vec![Remove::Folders]]);
        assert!(Plan::build(ORIGIN).undo(0).stages.is_empty());
    }
}
