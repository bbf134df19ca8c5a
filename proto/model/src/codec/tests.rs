use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::{
    Conclusion, Digest, Epoch, FailureClass, JobId, ProjectName, Provisioning, Resources,
    StepCounts, Timestamp, Work,
};

#[derive(Debug, PartialEq)]
struct Old {
    a: u64,
}
record! { Old { a } }

#[derive(Debug, PartialEq)]
struct New {
    a: u64,
    b: Vec<String>,
}
record! { New { a, b } }

#[derive(Debug, PartialEq)]
enum Shape {
    Point,
    Line { from: u32, to: Option<i32> },
}
variants! { Shape { 0 = Point, 7 = Line { from, to } } }

#[test]
fn a_record_is_read_by_older_and_newer_code() {
    let new = New { a: 300, b: vec!["x".into()] };
    assert_eq!(Old::from_bytes(&new.to_bytes()), Ok(Old { a: 300 }));
    assert_eq!(New::from_bytes(&Old { a: 5 }.to_bytes()), Ok(New { a: 5, b: vec![] }));
}

#[test]
fn a_value_has_one_spelling() {
    assert_eq!(u64::from_bytes(&[0x80, 0x00]), Err(DecodeError::Integer));
    assert_eq!(u64::from_bytes(&u64::MAX.to_bytes()), Ok(u64::MAX));
    assert_eq!(bool::from_bytes(&[2]), Err(DecodeError::Integer));
    let line = Shape::Line { from: 1, to: Some(-3) };
    assert_eq!(Shape::from_bytes(&line.to_bytes()), Ok(line));
    assert_eq!(Shape::from_bytes(&[9]), Err(DecodeError::Variant { name: "Shape", number: 9 }));
}

#[test]
fn a_length_is_checked_before_anything_is_allocated() {
    let huge = (u64::MAX >> 1).to_bytes();
    assert_eq!(Vec::<u64>::from_bytes(&huge), Err(DecodeError::Truncated));
    assert_eq!(String::from_bytes(&huge), Err(DecodeError::Truncated));
}

type Mixed = ((u64, i32), (BTreeMap<String, u32>, (BTreeSet<u16>, Vec<Option<bool>>)));

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        number in any::<u64>(),
        signed in any::<i32>(),
        map in btree_map(".{0,4}", any::<u32>(), 0..5),
        set in btree_set(any::<u16>(), 0..5),
        list in vec(any::<Option<bool>>(), 0..5),
    ) {
        let value: Mixed = ((number, signed), (map, (set, list)));
        let bytes = value.to_bytes();
        prop_assert_eq!(Mixed::from_bytes(&bytes), Ok(value));
        for end in 0..bytes.len() {
            prop_assert_eq!(Mixed::from_bytes(&bytes[..end]), Err(DecodeError::Truncated));
        }
        let longer = [bytes, vec![0]].concat();
        prop_assert_eq!(Mixed::from_bytes(&longer), Err(DecodeError::Trailing(1)));
    }

    #[test]
    fn no_two_spellings_are_of_one_value(bytes in vec(prop_oneof![0u8..4, any::<u8>()], 0..24)) {
        if let Ok(value) = Mixed::from_bytes(&bytes) {
            prop_assert_eq!(value.to_bytes(), bytes);
        }
    }

    #[test]
    fn no_bytes_make_a_reader_panic(bytes in vec(any::<u8>(), 0..64)) {
        let _ = Work::from_bytes(&bytes);
        let _ = Conclusion::from_bytes(&bytes);
        let _ = FailureClass::from_bytes(&bytes);
        let _ = Provisioning::from_bytes(&bytes);
        let _ = Vec::<Resources>::from_bytes(&bytes);
        let _ = StepCounts::from_bytes(&bytes);
        let _ = Option::<ProjectName>::from_bytes(&bytes);
        let _ = <(Digest, Timestamp)>::from_bytes(&bytes);
        let _ = <[u8; 32]>::from_bytes(&bytes);
        let _ = Arc::<Shape>::from_bytes(&bytes);
    }

    #[test]
    fn nouns_are_read_back(job in any::<u64>(), attempt in any::<u32>(), hash in any::<[u8; 32]>()) {
        let work = Work { job: JobId::from_counter(job), attempt };
        prop_assert_eq!(Work::from_bytes(&work.to_bytes()), Ok(work));
        let digest = Digest { hash, size: job };
        prop_assert_eq!(Digest::from_bytes(&digest.to_bytes()), Ok(digest));
        prop_assert_eq!(digest.to_string().parse(), Ok(digest));
        let epoch = Epoch::from_counter(job);
        prop_assert_eq!(epoch.to_string().parse(), Ok(epoch));
    }
}

#[test]
fn a_map_out_of_order_is_refused() {
    assert_eq!(BTreeSet::<u8>::from_bytes(&[2, 5, 4]), Err(DecodeError::Order));
    assert_eq!(BTreeSet::<u8>::from_bytes(&[2, 4, 4]), Err(DecodeError::Order));
    assert_eq!(BTreeMap::<u8, u8>::from_bytes(&[2, 5, 0, 4, 0]), Err(DecodeError::Order));
}

#[test]
fn a_name_that_no_client_may_choose_is_not_read_either() {
    let bad = "two words".to_owned().to_bytes();
    assert_eq!(ProjectName::from_bytes(&bad), Err(DecodeError::Invalid("project name")));
}
