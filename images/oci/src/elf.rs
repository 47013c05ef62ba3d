//! What an ELF file says of itself: for which machines it is, and whether it needs a loader.

/// Architecture of a program in OCI's words. A script runs where its interpreter does, so it counts
/// as this machine's.
pub fn architecture(program: &[u8]) -> &'static str {
    match machine(program) {
        Some(62) => "amd64",
        Some(183) => "arm64",
        _ => here(),
    }
}

/// This machine's architecture in OCI's words.
pub fn here() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// True for a program that a loader has to bring shared libraries to: one with a `PT_INTERP` header.
pub fn is_dynamic(program: &[u8]) -> bool {
    let header = || {
        machine(program)?;
        let table = usize::try_from(u64::from_le_bytes(bytes(program, 32)?)).ok()?;
        let size = usize::from(u16::from_le_bytes(bytes(program, 54)?));
        let count = usize::from(u16::from_le_bytes(bytes(program, 56)?));
        (0..count)
            .map_while(|i| bytes(program, table.checked_add(i.checked_mul(size)?)?))
            .map(u32::from_le_bytes)
            .find(|kind| *kind == 3)
    };
    header().is_some()
}

/// `e_machine` of a 64-bit, little-endian ELF file: all that this project builds for.
fn machine(program: &[u8]) -> Option<u16> {
    program
        .starts_with(b"\x7fELF\x02\x01")
        .then(|| bytes(program, 18).map(u16::from_le_bytes))?
}

fn bytes<const N: usize>(program: &[u8], at: usize) -> Option<[u8; N]> {
    program.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program without code: its header, and program headers of these kinds.
    fn program(machine: u16, kinds: &[u32]) -> Vec<u8> {
        let mut elf = b"\x7fELF\x02\x01".to_vec();
        elf.resize(64, 0);
        elf[18..20].copy_from_slice(&machine.to_le_bytes());
        elf[32..40].copy_from_slice(&64_u64.to_le_bytes());
        elf[54..56].copy_from_slice(&56_u16.to_le_bytes());
        elf[56..58].copy_from_slice(&u16::try_from(kinds.len()).unwrap().to_le_bytes());
        for kind in kinds {
            elf.extend(kind.to_le_bytes());
            elf.resize(elf.len() + 52, 0);
        }
        elf
    }

    #[test]
    fn the_program_says_for_which_machine_it_is() {
        assert_eq!(architecture(&program(183, &[])), "arm64");
        assert_eq!(architecture(&program(62, &[])), "amd64");
        assert_eq!(architecture(b"#!/bin/sh\n"), here());
        assert_eq!(architecture(b""), here());
    }

    #[test]
    fn a_program_with_a_loader_is_dynamic() {
        assert!(is_dynamic(&program(183, &[6, 3, 1])));
        assert!(!is_dynamic(&program(183, &[1, 1])));
        assert!(!is_dynamic(b"#!/bin/sh\n"));
    }

    #[test]
    fn a_damaged_program_is_no_program() {
        let whole = program(183, &[1, 3]);
        for length in 0..whole.len() {
            let _ = (architecture(&whole[..length]), is_dynamic(&whole[..length]));
        }
        let mut far = whole;
        far[32..40].fill(0xff);
        assert!(!is_dynamic(&far));
    }
}
