//! A ustar writer with nothing in it that differs from run to run: no times, no owners.

use crate::ImageError;

const BLOCK: usize = 512;

/// A tar file under construction.
#[derive(Debug, Default)]
pub struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    /// Adds a folder.
    pub fn folder(&mut self, path: &str, mode: u32) -> Result<(), ImageError> {
        self.header(&format!("{path}/"), mode, 0, b'5')
    }

    /// Adds a file.
    pub fn file(&mut self, path: String, mode: u32, content: &[u8]) -> Result<(), ImageError> {
        self.header(&path, mode, content.len(), b'0')?;
        self.bytes.extend_from_slice(content);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        Ok(())
    }

    /// Ends the file.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    fn header(&mut self, path: &str, mode: u32, size: usize, kind: u8) -> Result<(), ImageError> {
        // The prefix field of ustar is not used: no path here comes near 100 bytes.
        if path.len() > 99 {
            return Err(ImageError::LongPath(path.to_owned()));
        }
        let mut block = [0_u8; BLOCK];
        let mut put = |at: usize, text: &[u8]| {
            if let Some(field) = block.get_mut(at..at + text.len()) {
                field.copy_from_slice(text);
            }
        };
        put(0, path.as_bytes());
        put(100, format!("{mode:07o}\0").as_bytes());
        put(108, b"0000000\0");
        put(116, b"0000000\0");
        put(124, format!("{size:011o}\0").as_bytes());
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, &[kind]);
        put(257, b"ustar\x0000");
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        if let Some(field) = block.get_mut(148..156) {
            field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        self.bytes.extend_from_slice(&block);
        Ok(())
    }
}
