//! Volumes: carries out on the file system what podcore decided, in the kubelet's layout.

pub mod atomic;
pub mod contents;
pub mod env_file;
pub mod host_path;
pub mod local;
pub mod mounts;
pub mod nfs;
pub mod options;
pub mod ownership;
pub mod remove;
pub mod setup;
pub mod sub_path;
