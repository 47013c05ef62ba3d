//! Condition types and reasons, so that people, scripts and code find the same words everywhere.

/// Workload: the spec can be carried out as it is written.
pub const ACCEPTED: &str = "Accepted";
/// Workload: every desired replica has a place.
pub const PLACED: &str = "Placed";
/// Workload and node: all desired replicas are ready; the node's agent is connected.
pub const READY: &str = "Ready";
/// Job: all replicas ended well, or (False) one failed for good.
pub const COMPLETE: &str = "Complete";

/// Accepted=True.
pub const REASON_VALID: &str = "Valid";
/// Accepted=False: the message names the field.
pub const REASON_INVALID_SPEC: &str = "InvalidSpec";

/// Placed=True.
pub const REASON_ALL_PLACED: &str = "AllPlaced";
/// Placed=False: no node fits; the message and `status.rejected` say why.
pub const REASON_UNPLACEABLE: &str = "Unplaceable";
/// Placed=False: a decision is under way.
pub const REASON_PLACING: &str = "Placing";
/// Placed=False: the node is out of reach and `replaceAfter` has not passed, or the workload is
/// `exclusive` and waits for the node.
pub const REASON_NODE_LOST: &str = "NodeLost";

/// Ready=True.
pub const REASON_ALL_READY: &str = "AllReady";
/// Ready=False: some replica has not started.
pub const REASON_STARTING: &str = "Starting";
/// Ready=False: some replica fails; the message carries the node's reason.
pub const REASON_REPLICA_FAILING: &str = "ReplicaFailing";
/// Ready=False: some replica's node is out of reach.
pub const REASON_NODE_UNREACHABLE: &str = "NodeUnreachable";
/// Ready=False: the workload asks for no replicas.
pub const REASON_SCALED_TO_ZERO: &str = "ScaledToZero";
/// Ready=False: a job has ended.
pub const REASON_COMPLETED: &str = "Completed";
/// Complete=False: a replica of the job failed for good.
pub const REASON_REPLICA_FAILED: &str = "ReplicaFailed";
/// Complete=False: replicas of the job still have to end.
pub const REASON_RUNNING: &str = "Running";
/// Ready=False: the workload is being deleted.
pub const REASON_DELETING: &str = "Deleting";

/// Event on a workload: a replica got its place.
pub const EVENT_PLACED: &str = "Placed";
/// Event on a workload: a replica was placed again.
pub const EVENT_REPLACED: &str = "Replaced";
/// Event on a workload: no node fits.
pub const EVENT_UNPLACEABLE: &str = "Unplaceable";
/// Event on a workload: a node did not confirm that a replica stopped.
pub const EVENT_STOP_UNCONFIRMED: &str = "StopUnconfirmed";
/// Event on a workload: a replica that ran well was moved to a better place.
pub const EVENT_MOVED: &str = "Moved";
/// Event on a workload: a site decided about a replica while it was cut off.
pub const EVENT_DECIDED_BY_SITE: &str = "DecidedBySite";
/// Event on a workload or a node: what a site decided while it was cut off does not hold.
pub const EVENT_SITE_OVERRULED: &str = "SiteOverruled";
/// Event on a node: something that was applied at its site can't be taken over; it goes on there.
pub const EVENT_NOT_TAKEN_OVER: &str = "NotTakenOver";
/// Event on the ConfigMap of the policy: the policy that was asked for is refused.
pub const EVENT_POLICY_REFUSED: &str = "PolicyRefused";
/// Reason of a placement's status: the job's replica ended well on another node, which was out of
/// reach then.
pub const REASON_ENDED_ELSEWHERE: &str = "EndedElsewhere";

/// Event on a workload: the spec is refused.
pub const EVENT_INVALID: &str = "InvalidSpec";
