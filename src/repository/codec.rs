//! Bounded reading and writing of the binary formats: every length is checked before it is believed.

/// The bytes do not follow the format; says where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub String);

pub(super) type Decoded<T> = Result<T, Malformed>;

pub(super) fn malformed<T>(what: impl Into<String>) -> Decoded<T> {
    Err(Malformed(what.into()))
}

/// Reads from the front of a slice.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub fn take(&mut self, len: usize) -> Decoded<&'a [u8]> {
        let Some((head, tail)) = self.rest.split_at_checked(len) else {
            return malformed(format!("{len} bytes announced, {} left", self.rest.len()));
        };
        self.rest = tail;
        Ok(head)
    }

    pub fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        self.take(N)?.try_into().or_else(|_| malformed("short array"))
    }

    pub fn byte(&mut self) -> Decoded<u8> {
        Ok(self.array::<1>()?[0])
    }

    /// LEB128, at most 10 bytes.
    pub fn varint(&mut self) -> Decoded<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        malformed("number longer than 64 bits")
    }

    pub fn u32(&mut self) -> Decoded<u32> {
        u32::try_from(self.varint()?).or_else(|_| malformed("number longer than 32 bits"))
    }

    /// A count of items that take at least `min_bytes` each, so that a lie cannot make us allocate.
    pub fn count(&mut self, min_bytes: usize) -> Decoded<usize> {
        let count = usize::try_from(self.varint()?).or_else(|_| malformed("count out of range"))?;
        if count.saturating_mul(min_bytes.max(1)) > self.rest.len() {
            return malformed(format!("{count} items announced in {} bytes", self.rest.len()));
        }
        Ok(count)
    }

    pub fn text(&mut self) -> Decoded<&'a str> {
        let len = self.count(1)?;
        std::str::from_utf8(self.take(len)?).or_else(|_| malformed("text is not UTF-8"))
    }

    pub fn end(&self) -> Decoded<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            malformed(format!("{} bytes too many", self.rest.len()))
        }
    }
}

/// Appends in the format that [`Reader`] reads.
pub(super) trait Write {
    fn varint(&mut self, value: u64);
    fn text(&mut self, value: &str);
    fn size(&mut self, value: usize);
}

impl Write for Vec<u8> {
    fn varint(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.push(low & 0x7f);
            }
            self.push(low | 0x80);
        }
    }

    fn text(&mut self, value: &str) {
        self.size(value.len());
        self.extend_from_slice(value.as_bytes());
    }

    fn size(&mut self, value: usize) {
        self.varint(value as u64);
    }
}

/// Maps signed differences to small unsigned numbers.
pub(super) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

pub(super) fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_and_differences_read_back(value: u64, signed: i64) {
            let mut bytes = Vec::new();
            bytes.varint(value);
            bytes.varint(zigzag(signed));
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.varint().map(unzigzag), Ok(signed));
            prop_assert!(reader.end().is_ok());
        }

        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.text().is_ok() && reader.remaining() > 0 {}
        }
    }
}
