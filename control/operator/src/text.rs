//! Texts that several parts write.

use std::borrow::Borrow;

/// The first names of a list of so many: `a, b and 3 more`.
#[must_use]
pub fn listed<S: Borrow<str>>(first: &[S], all: usize) -> String {
    let names = first.join(", ");
    match all.saturating_sub(first.len()) {
        0 => names,
        more => format!("{names} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::listed;

    #[test]
    fn a_list_tells_how_many_it_leaves_out() {
        assert_eq!(listed::<&str>(&[], 0), "");
        assert_eq!(listed(&["a", "b"], 2), "a, b");
        assert_eq!(
            listed(&["a".to_owned(), "b".to_owned()], 5),
            "a, b and 3 more"
        );
    }
}
