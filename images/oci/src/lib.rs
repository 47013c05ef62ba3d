//! Builds container images without Docker, a registry or a network: a program, with the shared
//! libraries it is linked to, becomes an OCI layout in one tar file that
//! `ctr -n k8s.io image import` reads. The same input always gives the same bytes.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::expect_used))]

mod elf;
mod layout;
mod libraries;
mod tar;

use std::path::{Path, PathBuf};

pub use layout::digest;

/// Name of the demo image (`images/demo-inference`).
pub const DEMO_IMAGE: &str = "localhost/hyperion-demo:1";
/// Name of the image that pod sandboxes run, for containerd's `sandbox_image`.
pub const PAUSE_IMAGE: &str = "localhost/pause:1";

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A library that the program needs is not on this machine.
    #[error("{program} needs {library}, which is not on this machine")]
    Library {
        /// The program.
        program: PathBuf,
        /// The library.
        library: String,
    },
    /// `ldd` could not say which libraries a program needs.
    #[error("ldd {program}: {message}")]
    Ldd {
        /// The program.
        program: PathBuf,
        /// What it said.
        message: String,
    },
    /// The program is for other machines, and its libraries are not here.
    #[error("{0}: for another architecture, and not static: its libraries are not on this machine")]
    Foreign(PathBuf),
    /// The path does not fit a tar header.
    #[error("{0}: path is too long for the image")]
    LongPath(String),
    /// The image name is not `host/repository:tag`.
    #[error("image name {0:?} is not of the form host/repository:tag")]
    Name(String),
}

impl ImageError {
    fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// What an image holds.
#[derive(Debug, Clone)]
pub struct Image {
    /// Full name, `host/repository:tag`.
    pub name: String,
    /// Program on this machine; it is put at `/bin/<file name>`.
    pub program: PathBuf,
    /// Arguments that always follow the program.
    pub args: Vec<String>,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Number of the user that it runs as; root where there is none.
    pub user: Option<u32>,
    /// Files of this machine that come along under the path that they have here.
    pub files: Vec<PathBuf>,
}

impl Image {
    /// An image that runs `program` without arguments.
    #[must_use]
    pub fn new(name: &str, program: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            args: Vec::new(),
            env: vec!["PATH=/bin".to_owned()],
            user: None,
            files: Vec::new(),
        }
    }

    /// Adds a variable to the environment of the program.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push(format!("{name}={value}"));
        self
    }
}

/// The demo image and the pause image, from the programs `demo-inference` and `hyperion-pause` in
/// `programs`. One thread computes: replicas share the machine with many others.
#[must_use]
pub fn standard(programs: &Path) -> [Image; 2] {
    [
        Image::new(DEMO_IMAGE, &programs.join("demo-inference")).env("RAYON_NUM_THREADS", "1"),
        Image::new(PAUSE_IMAGE, &programs.join("hyperion-pause")),
    ]
}

/// Who the control plane runs as: a user that no machine has.
pub const NOBODY: u32 = 65532;
/// Certificates of the authorities that clouds' APIs are known by, where Debian has them.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The images that the Helm chart runs, from the programs in `programs`: the control plane and the
/// agent. They are named `host/hyperion-control:version` and so on.
#[must_use]
pub fn product(programs: &Path, host: &str, version: &str) -> [Image; 2] {
    let image = |program: &str| {
        let name = format!("{host}/{program}:{version}");
        Image::new(&name, &programs.join(program))
    };
    let mut control = image("hyperion-control");
    control.user = Some(NOBODY);
    control.files = vec![AUTHORITIES.into()];
    [control, image("hyperion-agent")]
}

/// Builds `image` and writes it to `to`.
///
/// # Errors
/// The program or one of its libraries can't be read, or `to` can't be written.
pub fn pack(image: &Image, to: &Path) -> Result<(), ImageError> {
    let bytes = build(image)?;
    std::fs::write(to, bytes).map_err(ImageError::file(to))
}

/// Builds `image` in memory: the bytes of the tar file.
///
/// # Errors
/// The program or one of its libraries can't be read.
pub fn build(image: &Image) -> Result<Vec<u8>, ImageError> {
    layout::check_name(&image.name)?;
    let program = std::fs::read(&image.program).map_err(ImageError::file(&image.program))?;
    let file_name = image.program.file_name().map_or_else(
        || "program".to_owned(),
        |n| n.to_string_lossy().into_owned(),
    );
    let entrypoint = format!("/bin/{file_name}");
    let mut layer = tar::Tar::default();
    for folder in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        layer.folder(folder, if folder == "tmp" { 0o1777 } else { 0o755 })?;
    }
    layer.file("bin/".to_owned() + &file_name, 0o755, &program)?;
    layer.file(
        "etc/passwd".to_owned(),
        0o644,
        b"root:x:0:0:root:/:/bin/false\n",
    )?;
    let libraries = if elf::architecture(&program) == elf::here() {
        libraries::needed_by(&image.program)?
    } else if elf::is_dynamic(&program) {
        return Err(ImageError::Foreign(image.program.clone()));
    } else {
        Vec::new()
    };
    let libraries = libraries
        .iter()
        .map(|l| (&l.found, l.inside.clone(), 0o755));
    let files = image.files.iter();
    let files = files.map(|f| (f, f.to_string_lossy().into_owned(), 0o644));
    let mut folders = std::collections::BTreeSet::from(["etc".to_owned()]);
    for (found, inside, mode) in libraries.chain(files) {
        let bytes = std::fs::read(found).map_err(ImageError::file(found))?;
        let inside = inside.trim_start_matches('/');
        for (at, _) in inside.match_indices('/') {
            if let Some(folder) = inside.get(..at)
                && folders.insert(folder.to_owned())
            {
                layer.folder(folder, 0o755)?;
            }
        }
        layer.file(inside.to_owned(), mode, &bytes)?;
    }
    layout::image_tar(
        image,
        &entrypoint,
        elf::architecture(&program),
        layer.finish(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell() -> Image {
        Image::new("localhost/shell:1", Path::new("/bin/sh"))
    }

    #[test]
    fn the_same_program_gives_the_same_bytes() {
        assert_eq!(build(&shell()).unwrap(), build(&shell()).unwrap());
    }

    #[test]
    fn system_tar_reads_the_image_and_its_layer() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image.tar");
        pack(&shell(), &file).unwrap();
        let out = std::process::Command::new("tar")
            .args(["-xf", &file.to_string_lossy(), "-C"])
            .arg(dir.path())
            .output()
            .unwrap();
        assert!(out.status.success(), "{out:?}");
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("index.json")).unwrap()).unwrap();
        let entry = &index["manifests"][0];
        assert_eq!(
            entry["annotations"]["io.containerd.image.name"],
            "localhost/shell:1"
        );
        let blob = |d: &serde_json::Value| {
            let hex = d.as_str().unwrap().strip_prefix("sha256:").unwrap();
            let bytes = std::fs::read(dir.path().join("blobs/sha256").join(hex)).unwrap();
            assert_eq!(digest(&bytes), d.as_str().unwrap());
            bytes
        };
        let manifest: serde_json::Value = serde_json::from_slice(&blob(&entry["digest"])).unwrap();
        blob(&manifest["config"]["digest"]);
        let layer = dir.path().join("layer.tar");
        std::fs::write(&layer, blob(&manifest["layers"][0]["digest"])).unwrap();
        let out = std::process::Command::new("tar")
            .args(["-tf", &layer.to_string_lossy()])
            .output()
            .unwrap();
        let names = String::from_utf8(out.stdout).unwrap();
        assert!(names.lines().any(|n| n == "bin/sh"), "{names}");
        assert!(names.contains("libc.so.6"), "{names}");
    }

    #[test]
    fn the_control_plane_is_nobody_and_brings_what_it_trusts() {
        let programs = Path::new("/programs");
        let [control, agent] = product(programs, "registry.example", "1.2.3");
        assert_eq!(control.name, "registry.example/hyperion-control:1.2.3");
        assert_eq!((control.user, agent.user), (Some(NOBODY), None));
        let mut image = shell();
        (image.user, image.files) = (control.user, vec!["/etc/hostname".into()]);
        let bytes = build(&image).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains(r#""User":"65532:65532""#), "the config");
        assert!(text.contains("etc/hostname\0"), "the file");
        image.files = vec!["/etc/no-such-file".into()];
        let error = build(&image).unwrap_err().to_string();
        assert!(error.contains("/etc/no-such-file"), "{error}");
    }

    #[test]
    fn a_program_for_other_machines_has_to_be_static() {
        let other = if elf::here() == "arm64" { 62_u16 } else { 183 };
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        elf[18..20].copy_from_slice(&other.to_le_bytes());
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        std::fs::write(&program, &elf).unwrap();
        let bytes = build(&Image::new("localhost/other:1", &program)).unwrap();
        let name = elf::architecture(&elf);
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains(&format!(r#""architecture":"{name}""#)),
            "the config"
        );

        // One program header, which asks for a loader.
        elf[32] = 64;
        elf[54] = 56;
        elf[56] = 1;
        elf.extend(3_u32.to_le_bytes());
        std::fs::write(&program, &elf).unwrap();
        let error = build(&Image::new("localhost/other:1", &program)).unwrap_err();
        assert!(error.to_string().contains("not static"), "{error}");
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = build(&Image::new("localhost/x:1", Path::new("/nowhere/prog"))).unwrap_err();
        assert!(error.to_string().contains("/nowhere/prog"), "{error}");
    }

    #[test]
    fn a_name_without_host_or_tag_is_refused() {
        for name in ["demo", "localhost/demo", "localhost/:1", "a b/c:1"] {
            let error = build(&Image::new(name, Path::new("/bin/sh"))).unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }
}
