//! Which shared libraries a program needs, as the dynamic loader of this machine says.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::ImageError;

/// A library, and where the loader inside the image will look for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Library {
    /// Path on this machine, symbolic links followed when read.
    pub found: PathBuf,
    /// Path inside the image.
    pub inside: String,
}

/// The libraries of `program`, the loader itself among them; none for a static program.
pub fn needed_by(program: &Path) -> Result<Vec<Library>, ImageError> {
    let out = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .map_err(ImageError::file(Path::new("ldd")))?;
    let text = String::from_utf8_lossy(&out.stdout);
    let complaint = String::from_utf8_lossy(&out.stderr);
    if text.contains("statically linked") || complaint.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    if !out.status.success() {
        return Err(ImageError::Ldd {
            program: program.to_owned(),
            message: complaint.trim().to_owned(),
        });
    }
    parse(program, &text)
}

fn parse(program: &Path, text: &str) -> Result<Vec<Library>, ImageError> {
    let mut libraries = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("linux-vdso") || line.is_empty() {
            continue;
        }
        let path = match line.split_once("=>") {
            Some((name, found)) if found.trim().starts_with("not found") => {
                return Err(ImageError::Library {
                    program: program.to_owned(),
                    library: name.trim().to_owned(),
                });
            }
            Some((_, found)) => found,
            None => line,
        };
        let Some(path) = path.split_whitespace().next() else {
            continue;
        };
        libraries.push(Library {
            found: PathBuf::from(path),
            inside: path.to_owned(),
        });
    }
    libraries.sort_by(|a, b| a.inside.cmp(&b.inside));
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ldd_prints() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths: Vec<String> = parse(Path::new("p"), text)
            .unwrap()
            .into_iter()
            .map(|l| l.inside)
            .collect();
        assert_eq!(
            paths,
            [
                "/lib/x86_64-linux-gnu/libc.so.6",
                "/lib64/ld-linux-x86-64.so.2"
            ]
        );
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = parse(Path::new("p"), "\tlibfoo.so.1 => not found\n").unwrap_err();
        assert!(error.to_string().contains("libfoo.so.1"), "{error}");
    }
}
