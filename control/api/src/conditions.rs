//! Condition types and reasons, so that people, scripts and code find the same words everywhere.

/// Workload and rollout: the spec can be carried out as it is written.
pub const ACCEPTED: &str = "Accepted";
/// Workload: every desired replica has a place.
pub const PLACED: &str = "Placed";
/// Workload and node: all desired replicas are ready; the node's agent is connected.
pub const READY: &str = "Ready";
/// Job: all replicas ended well, or (False) one failed for good. Rollout: it is over.
pub const COMPLETE: &str = "Complete";

/// Rollout: nothing is begun until somebody resumes it. Its reasons, and those of Complete, are those
/// of the rollout's phase.
pub const PAUSED: &str = "Paused";
/// Event on a rollout: a node ended without the version.
pub const EVENT_UPDATE_FAILED: &str = "UpdateFailed";
/// Event on a rollout: a wave begins.
pub const EVENT_WAVE: &str = "WaveBegins";

/// Node: its cloud is about to take it back, or to restart it; there is no such condition otherwise.
pub const INTERRUPTION: &str = "Interruption";
/// Interruption=True: the cloud takes a spot machine back.
pub const REASON_SPOT_INTERRUPTION: &str = "SpotInterruption";
/// Interruption=True: a spot machine is at a higher risk of that.
pub const REASON_REBALANCE: &str = "RebalanceRecommendation";
/// Interruption=True: the machine is restarted, moved or ended, and its containers with it.
pub const REASON_MAINTENANCE: &str = "Maintenance";

/// Accepted=True.
pub const REASON_VALID: &str = "Valid";
/// Accepted=False of a workload or rollout, Ready=False of a cluster: the message names the field.
pub const REASON_INVALID_SPEC: &str = "InvalidSpec";

/// Placed=True.
pub const REASON_ALL_PLACED: &str = "AllPlaced";
/// Placed=False: no node fits; the message and `status.rejected` say why.
pub const REASON_UNPLACEABLE: &str = "Unplaceable";
/// Placed=False: a quota of the namespace leaves too little; the message names it.
pub const REASON_QUOTA: &str = "QuotaExceeded";
/// Placed=False: there is no PriorityClass of the name that the template has.
pub const REASON_PRIORITY_CLASS: &str = "PriorityClassMissing";
/// Placed=False: replicas of lower priority make room for it; the message names the node.
pub const REASON_PREEMPTING: &str = "Preempting";
/// Placed=False of a workload, and reason of a placement that ends: it gave way to a replica of higher
/// priority, which the message names.
pub const REASON_PREEMPTED: &str = "Preempted";
/// Placed=False: a machine is being launched for it; the message names the offer and the NodeClaim.
pub const REASON_LAUNCHING: &str = "Launching";
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
/// Event on a workload: others give way to a replica that fits nowhere.
pub const EVENT_PREEMPTS: &str = "Preempts";
/// Event on a workload: a replica gives way to one of higher priority.
pub const EVENT_PREEMPTED: &str = "Preempted";
/// Event on a workload: a machine is launched for a replica that fits nowhere.
pub const EVENT_LAUNCHING: &str = "Launching";
/// Event on a workload: the machine that it waited for does not come; another offer is taken.
pub const EVENT_LAUNCH_FAILED: &str = "LaunchFailed";
/// Event on a node: something that was applied at its site can't be taken over; it goes on there.
pub const EVENT_NOT_TAKEN_OVER: &str = "NotTakenOver";
/// Event on the ConfigMap of the policy: the policy that was asked for is refused.
pub const EVENT_POLICY_REFUSED: &str = "PolicyRefused";
/// Reason of a placement's status: the job's replica ended well on another node, which was out of
/// reach then.
pub const REASON_ENDED_ELSEWHERE: &str = "EndedElsewhere";

/// Event on a workload: the spec is refused.
pub const EVENT_INVALID: &str = "InvalidSpec";

/// Ready=True of a cluster.
pub const REASON_CLUSTER_READY: &str = "ClusterReady";
/// Ready=Unknown of a cluster: it has not been read yet.
pub const REASON_CONNECTING: &str = "Connecting";
/// Ready=False of a cluster: there is no Secret of that name, or it has no key `kubeconfig`.
pub const REASON_SECRET_MISSING: &str = "SecretMissing";
/// Ready=False of a cluster: the kubeconfig can't be read or used.
pub const REASON_KUBECONFIG_INVALID: &str = "KubeconfigInvalid";
/// Ready=False of a cluster: there is no ClusterProfile of that name, or no such kind.
pub const REASON_PROFILE_MISSING: &str = "ProfileMissing";
/// Ready=False of a cluster: its ClusterProfile offers no access that we have a plugin for, or one that
/// can't be used.
pub const REASON_PROFILE_UNUSABLE: &str = "ProfileUnusable";
/// Ready=False of a cluster: its credential plugin gives none.
pub const REASON_CREDENTIALS_FAILED: &str = "CredentialsFailed";
/// Ready=False of a cluster: its API server does not answer.
pub const REASON_UNREACHABLE: &str = "Unreachable";
/// Ready=False of a cluster: its API server does not know who asks.
pub const REASON_UNAUTHORIZED: &str = "Unauthorized";
/// Ready=False of a cluster: a right is missing; the message names verb and resource.
pub const REASON_FORBIDDEN: &str = "Forbidden";
/// Ready=False of a cluster: names with dots can't be told from those of nodes.
pub const REASON_INVALID_NAME: &str = "InvalidName";
/// Ready=False of a cluster that is deleted: its Pods have not ended.
pub const REASON_LEAVING: &str = "Leaving";
/// Cluster: True where its clock and ours are far apart.
pub const CLOCK_SKEW: &str = "ClockSkew";
/// Event on a cluster: its Ready condition changed, or what was left behind in it.
pub const EVENT_CLUSTER: &str = "Cluster";
/// Event on a cluster: it was let go with Pods left in it.
pub const EVENT_ABANDONED: &str = "Abandoned";
/// Event on a workload: a Pod of its was deleted by others, and is made again.
pub const EVENT_POD_DELETED: &str = "PodDeleted";
/// Event on a workload: a Pod of its was changed by others, and is made again.
pub const EVENT_POD_CHANGED: &str = "PodChanged";
/// Cluster: machines can be launched in it; there is no such condition where none may be.
pub const CAPACITY: &str = "Capacity";
/// Capacity=True.
pub const REASON_CAPACITY_READY: &str = "CapacityReady";
/// Capacity=False: the cluster has no NodeClaims: Karpenter is not installed, or too old.
pub const REASON_KARPENTER_MISSING: &str = "KarpenterMissing";
/// Capacity=False: the node class does not exist.
pub const REASON_NODE_CLASS_MISSING: &str = "NodeClassMissing";
/// Capacity=False: the API server refuses the NodeClaims as they are; the message has its words.
pub const REASON_NODE_CLAIM_REFUSED: &str = "NodeClaimRefused";
/// Event on a cluster: a machine was given back, and why.
pub const EVENT_GIVEN_BACK: &str = "GivenBack";
