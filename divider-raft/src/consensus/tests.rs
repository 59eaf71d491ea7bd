mod crashes;
mod snapshots;
mod storage;
