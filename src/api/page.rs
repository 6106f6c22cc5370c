//! Paging and sorting of lists.

use std::cmp::Ordering;

use serde::Serialize;
use utoipa::ToSchema;

use super::error::ApiError;
use super::extract::Pairs;

/// Items of a page where the caller does not say.
pub const LIMIT_DEFAULT: u64 = 50;
/// Items of a page, at most.
pub const LIMIT_MAX: u64 = 100;
/// The last page there can be.
const PAGE_MAX: u64 = 1_000_000_000;

/// Which part of a list is wanted, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    page: u64,
    limit: u64,
    /// One of the names that the list knows.
    pub sort_by: &'static str,
    descending: bool,
}

/// Where a page stands in its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct Pagination {
    /// Items in the whole list.
    pub total: u64,
    /// This page, from 1.
    pub page: u64,
    /// Items of a page.
    pub limit: u64,
    /// Pages in the whole list.
    #[serde(rename = "totalPages")]
    pub total_pages: u64,
}

impl Page {
    /// Takes `page`, `limit`, `sort_by` and `sort_order` out of a query; the list can be sorted by `keys`, of which
    /// the first is the default.
    ///
    /// # Errors
    /// One of them is out of bounds or unknown.
    pub fn take(pairs: &mut Pairs, keys: &'static [&'static str]) -> Result<Self, ApiError> {
        let words: Vec<_> = keys.iter().map(|key| (*key, *key)).collect();
        Ok(Self {
            page: pairs.number("page", 1, PAGE_MAX)?.unwrap_or(1),
            limit: pairs.number("limit", 1, LIMIT_MAX)?.unwrap_or(LIMIT_DEFAULT),
            sort_by: pairs.word("sort_by", &words)?.unwrap_or(keys.first().copied().unwrap_or_default()),
            descending: pairs.word("sort_order", &[("asc", false), ("desc", true)])?.unwrap_or(false),
        })
    }

    /// Sorts a list (stably: equal items stay in the order they came in) and cuts the page out.
    pub fn cut<T>(self, mut items: Vec<T>, order: impl Fn(&T, &T) -> Ordering) -> (Vec<T>, Pagination) {
        let total = items.len() as u64;
        items.sort_by(|a, b| if self.descending { order(b, a) } else { order(a, b) });
        let skip = usize::try_from((self.page - 1) * self.limit).unwrap_or(usize::MAX);
        let page = items.into_iter().skip(skip).take(self.limit as usize).collect();
        let pagination =
            Pagination { total, page: self.page, limit: self.limit, total_pages: total.div_ceil(self.limit) };
        (page, pagination)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::extract::{FromQuery, from_query};

    #[derive(Debug)]
    struct Probe(Page);

    impl FromQuery for Probe {
        fn from_query(pairs: &mut Pairs) -> Result<Self, ApiError> {
            Page::take(pairs, &["created_at", "name"]).map(Self)
        }
    }

    fn page(query: &str) -> Result<Page, ApiError> {
        from_query::<Probe>(&format!("/x?{query}").parse().unwrap()).map(|probe| probe.0)
    }

    #[test]
    fn pages_count_from_one_and_cover_the_list_once() {
        let numbers: Vec<u32> = (0..7).collect();
        let cut = |query: &str| page(query).unwrap().cut(numbers.clone(), Ord::cmp);
        assert_eq!(cut("limit=3").0, [0, 1, 2]);
        assert_eq!(cut("limit=3&page=3").0, [6]);
        assert!(cut("limit=3&page=4").0.is_empty());
        assert_eq!(cut("limit=3&sort_order=desc").0, [6, 5, 4]);
        assert_eq!(cut("limit=3").1, Pagination { total: 7, page: 1, limit: 3, total_pages: 3 });
        assert_eq!(page("").unwrap().cut(Vec::<u32>::new(), Ord::cmp).1.total_pages, 0);
    }

    #[test]
    fn a_page_that_cannot_be_is_refused() {
        for query in ["page=0", "limit=0", "limit=101", "sort_by=colour", "sort_order=up", "page=x"] {
            assert_eq!(page(query).unwrap_err().code(), "INVALID_PARAMETER", "{query}");
        }
        assert_eq!(page("sort_by=name").unwrap().sort_by, "name");
    }
}
