//! Scripts that made a store and the ledger differ once, under the name of what must hold. Every backend runs them all.
//! The first ones are of stores that were made wrong on purpose (`tests.rs`).

/// Name and text, as [`script`](super::script) reads it.
pub(super) const SCRIPTS: &[(&str, &str)] = &[
    (
        "a confirmation under an older token changes nothing",
        r#"[
    {"Batch":[{"Join":{"session":0,"node":0,"affinity":1,"capacity":null,"lease_ms":1,"seen":"Now"}}]},
    {"Poll":[0,"Take"]},
    {"Batch":[{"ResumeGrants":"Now"},{"Add":{"key":5,"weight":1,"priority":0,"not_before_ms":0,"payload":[0,0]}},{"Assign":{"term":"Now","key":5,"session":{"Living":0}}}]},
    {"Batch":[{"Confirm":{"grant":{"key":{"Owned":0},"session":{"Right":0},"token":{"Of":"Before"}},"started":false}}]},
    {"Batch":[{"Revoke":{"term":"Now","key":{"Owned":0},"token":{"Of":"Now"}}}]},
    {"Batch":[{"Confirm":{"grant":{"key":{"Owned":0},"session":{"Right":0},"token":{"Of":"Before"}},"started":false}}]}
]"#,
    ),
    (
        "a leader grants nothing in a term that is not the present one",
        r#"[
    {"Batch":[{"Join":{"session":0,"node":0,"affinity":1,"capacity":null,"lease_ms":1,"seen":"Now"}}]},
    {"Poll":[0,"Take"]},
    {"Batch":[{"ResumeGrants":"Now"},{"Add":{"key":0,"weight":1,"priority":0,"not_before_ms":0,"payload":[0,0]}}]},
    {"Batch":[{"Assign":{"term":"Before","key":0,"session":{"Living":0}}}]},
    {"Batch":[{"Assign":{"term":"After","key":0,"session":{"Living":0}}}]}
]"#,
    ),
    (
        "an end that is refused with its sender leaves a leader its leadership",
        r#"[
    {"Batch":[{"Join":{"session":0,"node":0,"affinity":0,"capacity":null,"lease_ms":1,"seen":"Now","reads":2}},{"Join":{"session":1,"node":0,"affinity":0,"capacity":null,"lease_ms":1,"seen":"After","reads":2}}]},
    {"Poll":[0,"Take"]},
    {"Batch":[{"Sender":{"session":{"Living":0},"serial":"Now"}},{"Sender":{"session":{"Living":0},"serial":"Before"}},{"End":{"Living":0}}]},
    {"Poll":[0,"Follow"]},
    {"Batch":[{"Sender":{"session":{"Living":0},"serial":"Now"}},{"End":{"Living":0}}]},
    {"Poll":[1,"Take"]}
]"#,
    ),
];
