//! Borrowed-or-owned text, so that a record decodes without an allocation per field.
//! Serde borrows for `&str` and top-level `Cow` only; this type borrows inside options, lists and maps as well.
//! Two words, where `Cow` takes three: a record has dozens of texts, and each is written, moved and dropped.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::{slice, str};

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// Text that borrows from the record it was decoded from when it can. Shorter than 4 GiB, as every record is.
pub struct Text<'a>(Bytes, PhantomData<&'a str>);

/// The text without its lifetime, so that dropping it asks nothing of what it borrows from.
struct Bytes {
    at: NonNull<u8>,
    /// The lower half is how many; where the upper half is not zero, they are a `Box<str>`.
    size: u64,
}

/// Put to the length of text that is owned.
const OWNED: u64 = 1 << 32;

// SAFETY: a `Bytes` is a `&str` or a `Box<str>`, which may both be sent and shared.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    #[inline(always)]
    const fn is_owned(&self) -> bool {
        self.size >= OWNED
    }

    #[inline(always)]
    const fn len(&self) -> usize {
        self.size as u32 as usize
    }

    /// The owned text, which the caller takes over.
    #[cold]
    fn boxed(&mut self) -> Box<str> {
        assert!(self.is_owned(), "only owned text is taken over");
        let bytes = NonNull::slice_from_raw_parts(self.at, self.len());
        self.size = 0;
        // SAFETY: these are the parts of a `Box<str>`, and from here on `self` is an empty text that owns nothing.
        unsafe { Box::from_raw(bytes.as_ptr() as *mut str) }
    }
}

impl Drop for Bytes {
    #[inline]
    fn drop(&mut self) {
        if self.is_owned() {
            drop(self.boxed());
        }
    }
}

impl<'a> Text<'a> {
    /// Text that borrows from static or longer-lived memory.
    #[inline]
    pub const fn borrowed(text: &'a str) -> Self {
        assert!(text.len() <= u32::MAX as usize, "a text is shorter than 4 GiB");
        // SAFETY: a reference is never null.
        let at = unsafe { NonNull::new_unchecked(text.as_ptr().cast_mut()) };
        Text(Bytes { at, size: text.len() as u64 }, PhantomData)
    }

    /// The text itself.
    #[inline]
    pub fn as_str(&self) -> &str {
        // SAFETY: made from a `&'a str`, or from a `Box<str>` that lives as long as `self`.
        unsafe { str::from_utf8_unchecked(slice::from_raw_parts(self.0.at.as_ptr(), self.0.len())) }
    }

    /// A copy that borrows from `self`.
    #[inline]
    pub fn reborrow(&self) -> Text<'_> {
        Text::borrowed(self.as_str())
    }

    /// A copy that owns its bytes.
    pub fn into_static(self) -> Text<'static> {
        Text::from(self.into_string())
    }

    /// The owned string.
    pub fn into_string(mut self) -> String {
        if self.0.is_owned() { self.0.boxed().into_string() } else { self.as_str().to_owned() }
    }
}

impl Clone for Text<'_> {
    #[inline]
    fn clone(&self) -> Self {
        if self.0.is_owned() {
            return Text::from(self.as_str().to_owned());
        }
        let Bytes { at, size } = self.0;
        Text(Bytes { at, size }, PhantomData)
    }
}

impl Default for Text<'_> {
    #[inline]
    fn default() -> Self {
        Text::borrowed("")
    }
}

impl PartialEq for Text<'_> {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Text<'_> {}

impl PartialOrd for Text<'_> {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Text<'_> {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for Text<'_> {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl Deref for Text<'_> {
    type Target = str;
    #[inline]
    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl<'a> From<&'a str> for Text<'a> {
    #[inline]
    fn from(text: &'a str) -> Self {
        Text::borrowed(text)
    }
}

impl From<String> for Text<'_> {
    fn from(text: String) -> Self {
        assert!(text.len() <= u32::MAX as usize, "a text is shorter than 4 GiB");
        let text = Box::leak(text.into_boxed_str());
        Text(Bytes { size: text.len() as u64 | OWNED, at: NonNull::from(text).cast() }, PhantomData)
    }
}

impl PartialEq<&str> for Text<'_> {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text::borrowed(text))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text::from(text.to_owned()))
    }

    fn visit_string<E: de::Error>(self, text: String) -> Result<Text<'de>, E> {
        Ok(Text::from(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_alike_however_they_are_held() {
        assert_eq!(size_of::<Option<Text<'_>>>(), 2 * size_of::<usize>());
        for text in ["", "a", "ß€🦀", "long enough to be on the heap for certain"] {
            let (borrowed, owned) = (Text::borrowed(text), Text::from(text.to_owned()));
            assert_eq!((&borrowed, owned.as_str(), owned.clone()), (&owned, text, borrowed.clone()));
            assert_eq!((owned.reborrow().into_string(), borrowed.into_string()), (text.to_owned(), text.to_owned()));
            let kept = { Text::from(text.to_owned()).reborrow().into_static() };
            assert_eq!((kept.cmp(&owned), kept.clone().into_string()), (Ordering::Equal, owned.into_string()));
        }
        assert!(Text::default().is_empty() && Text::borrowed("a") < Text::from("b".to_owned()));
    }
}
