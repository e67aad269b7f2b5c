//! A disk that can be slow or full: a shim between a process and its C library.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Faults of the disk under one directory, for all processes that are started with its variables.
#[derive(Debug)]
pub(crate) struct Disk {
    shim: PathBuf,
    controls: PathBuf,
    root: PathBuf,
}

impl Disk {
    /// Compiles the shim into `workplace`, for the disk under `root`.
    pub(crate) fn new(workplace: &Path, root: &Path) -> Self {
        let (shim, controls) = (workplace.join("disk.so"), workplace.join("disk"));
        fs::create_dir_all(&controls).unwrap();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/disk.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]).arg(&shim).args([source, "-ldl"]);
        assert!(compiler.status().expect("a C compiler").success(), "{compiler:?}");
        // As the kernel names files that are open.
        Self { shim, controls, root: fs::canonicalize(root).unwrap() }
    }

    /// What puts the shim into a process.
    pub(crate) fn vars(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        let pairs = [("LD_PRELOAD", &self.shim), ("E2LLM_DISK", &self.root), ("E2LLM_DISK_FAULTS", &self.controls)];
        pairs.map(|(key, path)| (key.to_owned(), text(path))).to_vec()
    }

    /// Each write and fsync takes so long from now on.
    pub(crate) fn slow(&self, millis: u64) {
        fs::write(self.controls.join("slow"), millis.to_string()).unwrap();
    }

    /// No write succeeds from now on.
    pub(crate) fn fill(&self) {
        fs::write(self.controls.join("full"), "").unwrap();
    }

    /// The disk is sound again.
    pub(crate) fn heal(&self) {
        for fault in ["slow", "full"] {
            let _ = fs::remove_file(self.controls.join(fault));
        }
    }

    /// How many calls were delayed or refused in all.
    pub(crate) fn faults(&self) -> u64 {
        let size = |name: &str| fs::metadata(self.controls.join(name)).map_or(0, |file| file.len());
        size("slowed") + size("refused")
    }
}
