//! Rows land in their slots, and nowhere else.

use super::*;
use crate::attention::tests::normal;
use crate::check::on_cuda;
use runtime::Isa;

#[test]
fn rows_land_in_their_slots() -> Result<()> {
    for (heads, n) in [(Heads { h: 2, k: 1, d: 8 }, 5), (Heads { h: 6, k: 3, d: 20 }, 700)] {
        let qkv = normal(n * heads.stride(), 31);
        // Every third row is not stored; the last row takes the slot of row 0.
        let mut slots: Vec<u32> = (0..n as u32).map(|i| if i % 3 == 1 { NOWHERE } else { (i * 7 + 3) % 800 }).collect();
        slots[n - 1] = slots[0];
        let count = 13;
        let page = heads.k * heads.d * PAGE;
        let (mut want_k, mut want_v) = (vec![-1.0; count * page], vec![-2.0; count * page]);
        for (row, slot) in qkv.chunks(heads.stride()).zip(&slots).filter(|(_, slot)| **slot != NOWHERE) {
            let (at, offset) = (*slot as usize / PAGE, *slot as usize % PAGE);
            for head in 0..heads.k {
                for i in 0..heads.d {
                    want_k[(at * heads.k + head) * heads.d * PAGE + i * PAGE + offset] = row[(heads.h + head) * heads.d + i];
                    want_v[(at * heads.k + head) * heads.d * PAGE + offset * heads.d + i] =
                        row[(heads.h + heads.k + head) * heads.d + i];
                }
            }
        }
        for threads in [1, 2, 4] {
            let s = Stream::cpu(threads, Isa::detect());
            let (k, v) = (s.upload(&vec![-1.0; count * page])?, s.upload(&vec![-2.0; count * page])?);
            let (qkv, slots) = (s.upload(&qkv)?, s.upload(&slots)?);
            forward(&s, Pages { k: k.view(), v: v.view() }, qkv.view(), slots.view(), heads)?;
            assert!(k.to_vec()? == want_k && v.to_vec()? == want_v, "{heads:?} {threads}");
        }
    }
    Ok(())
}

#[test]
fn on_cuda_rows_land_in_their_slots() {
    let (heads, n, count) = (Heads { h: 6, k: 3, d: 20 }, 300, 5);
    let qkv = normal(n * heads.stride(), 31);
    let mut slots: Vec<u32> = (0..n as u32).map(|i| if i % 3 == 1 { NOWHERE } else { (i * 7 + 3) % 320 }).collect();
    (slots[n - 1], slots[4]) = (slots[0], 320);
    let page = heads.k * heads.d * PAGE;
    let (mut want_k, mut want_v) = (vec![-1.0; count * page], vec![-2.0; count * page]);
    for (row, slot) in qkv.chunks(heads.stride()).zip(&slots).filter(|(_, slot)| **slot < 320) {
        for (head, i) in (0..heads.k).flat_map(|head| (0..heads.d).map(move |i| (head, i))) {
            let to = ((*slot as usize / PAGE * heads.k + head) * PAGE + *slot as usize % PAGE) * heads.d + i;
            (want_k[to], want_v[to]) = (row[(heads.h + head) * heads.d + i], row[(heads.h + heads.k + head) * heads.d + i]);
        }
    }
    on_cuda("kv_store", |s| {
        let (k, v) = (s.upload(&vec![-1.0; count * page])?, s.upload(&vec![-2.0; count * page])?);
        let (qkv, slots) = (s.upload(&qkv)?, s.upload(&slots)?);
        forward(s, Pages { k: k.view(), v: v.view() }, qkv.view(), slots.view(), heads)?;
        assert!(k.to_vec()? == want_k && v.to_vec()? == want_v);
        Result::Ok(())
    });
}

#[test]
fn invalid_slots_are_errors() -> Result<()> {
    let (s, heads) = (Stream::cpu(1, Isa::detect()), Heads { h: 2, k: 1, d: 8 });
    let (k, v, qkv) = (s.zeros::<f32>(1024)?, s.zeros::<f32>(1024)?, s.zeros::<f32>(64)?);
    let pages = Pages { k: k.view(), v: v.view() };
    let run = |pages: Pages<'_>, qkv: View<'_>, slots: &[u32]| -> Result<String> {
        let slots = s.upload(slots)?;
        Ok(forward(&s, pages, qkv, slots.view(), heads).err().map_or(String::new(), |e| e.to_string()))
    };
    assert_eq!(run(pages, qkv.view(), &[127, NOWHERE])?, "");
    assert!(run(pages, qkv.view(), &[0, 128])?.contains("Some(1) lies behind the last of 2 pages"));
    assert!(run(pages, qkv.view(), &[0])?.contains("qkv: wanted 32"));
    assert!(run(Pages { k: k.view().slice(0..1000)?, ..pages }, qkv.view(), &[0, 1])?.contains("pages.k: wanted 512"));
    assert!(run(pages, k.view().slice(0..64)?, &[0, 1])?.contains("overlaps"));
    Ok(())
}
