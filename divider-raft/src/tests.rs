mod crowd;
mod fixtures;
#[cfg(feature = "tls")]
mod intruder;
mod limits;
pub(crate) mod machine;
pub(crate) mod small_disk;
pub(crate) mod voters;
