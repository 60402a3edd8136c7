//! The safetensors header: read and checked so that every byte of the file belongs to exactly one tensor, and written.
//!
//! Layout: u64 little-endian length of the header, the header (JSON, padded with spaces to a multiple of 8), the tensors without
//! gaps; offsets count from the end of the header.

use crate::json::{self, Object};
use crate::{Error, Result};
use runtime::DType;
use safetensors::tensor::{Dtype, TensorInfo};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

const MOST_HEADER: u64 = 100_000_000;

/// Where one tensor lies.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    /// Bytes of the file.
    pub(crate) bytes: Range<usize>,
}

/// What the header of a file says.
#[derive(Debug, Default)]
pub(crate) struct Header {
    /// The strings of `__metadata__`.
    pub(crate) metadata: BTreeMap<String, String>,
    /// Where each tensor lies.
    pub(crate) entries: BTreeMap<String, Entry>,
}

/// Reads the header of a whole file's bytes.
pub(crate) fn read(path: &Path, file: &[u8]) -> Result<Header> {
    let fault = |text: String| Error::file(path, text);
    if file.starts_with(b"version https://git-lfs") {
        return Err(json::lfs_pointer(path));
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(fault(format!("header length: wanted 8 bytes, got a file of {}", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    let most = MOST_HEADER.min(rest.len() as u64);
    if length > most {
        return Err(fault(format!("header length: wanted at most {most} in a file of {} bytes, got {length}", file.len())));
    }
    let (header, data) = rest.split_at(length as usize);
    let text = std::str::from_utf8(header).map_err(|e| fault(format!("header: not UTF-8: {e}")))?;
    let map = json::parse(path, text)?;
    let (mut entries, mut strings) = (BTreeMap::new(), BTreeMap::new());
    for (name, value) in Object::new(path, &map).keys() {
        if name == "__metadata__" {
            strings = metadata(path, value)?;
            continue;
        }
        let info: TensorInfo = serde_json::from_value(value.clone()).map_err(|e| fault(format!("tensor {name:?}: {e}")))?;
        let bytes = place(&info, data.len()).map_err(|text| fault(format!("tensor {name:?}: {text}")))?;
        entries.insert(name.clone(), Entry { dtype: info.dtype, shape: info.shape, bytes });
    }
    covers(path, &entries, data.len())?;
    entries.values_mut().for_each(|e| e.bytes = e.bytes.start + 8 + header.len()..e.bytes.end + 8 + header.len());
    Ok(Header { metadata: strings, entries })
}

fn metadata(path: &Path, value: &serde_json::Value) -> Result<BTreeMap<String, String>> {
    let text = |(name, v): (&String, &serde_json::Value)| Some((name.clone(), v.as_str()?.to_string()));
    let strings = value.as_object().and_then(|map| map.iter().map(text).collect());
    strings.ok_or_else(|| Error::file(path, format!("__metadata__: wanted an object of strings, got {}", json::got(Some(value)))))
}

/// The tensor's bytes, relative to the end of the header.
fn place(info: &TensorInfo, data: usize) -> std::result::Result<Range<usize>, String> {
    let (start, end) = info.data_offsets;
    if start > end || end > data {
        return Err(format!("data_offsets: wanted a range within the {data} bytes of data, got [{start}, {end}]"));
    }
    let elements = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    let wanted = elements.and_then(|n| n.checked_mul(info.dtype.bitsize())).filter(|bits| bits % 8 == 0).map(|bits| bits / 8);
    if wanted != Some(end - start) {
        let wanted = wanted.map_or("another count of".into(), |n| n.to_string());
        return Err(format!("data_offsets: wanted {wanted} bytes for {} {:?}, got {}", info.dtype, info.shape, end - start));
    }
    Ok(start..end)
}

/// No tensor over another, no byte without a tensor.
fn covers(path: &Path, entries: &BTreeMap<String, Entry>, data: usize) -> Result<()> {
    let mut order: Vec<_> = entries.iter().map(|(name, e)| (e.bytes.start, e.bytes.end, name)).collect();
    order.sort_unstable();
    let mut next = 0;
    for (start, end, name) in order {
        if start != next {
            let what = if start < next { "overlaps another tensor" } else { "leaves a hole before it" };
            return Err(Error::file(
                path,
                format!("tensor {name:?}: data_offsets: wanted a start at {next}, got {start}: it {what}"),
            ));
        }
        next = end;
    }
    if next != data {
        return Err(Error::file(path, format!("wanted {next} bytes of data after the header, as its tensors say, got {data}")));
    }
    Ok(())
}

/// Name on disk of a dtype.
fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::Bf16 => "BF16",
        DType::F16 => "F16",
        DType::U32 => "U32",
        DType::I32 => "I32",
    }
}

/// A tensor to write: name, dtype, shape, little-endian bytes.
pub type Tensor<'a> = (String, DType, Vec<usize>, &'a [u8]);

/// Writes a safetensors file: metadata format pt first, tensors by name, no gaps; the bytes are those of PyTorch's own writer for
/// tensors of one dtype. A name that stands twice, or bytes that do not fit the shape, are errors and nothing is written.
pub fn write_safetensors(path: &Path, tensors: &[Tensor]) -> Result<()> {
    write_with_metadata(path, &[], tensors)
}

/// [`write_safetensors`] with more strings in its metadata; their names stand once and are not `format`.
pub fn write_with_metadata(path: &Path, more: &[(&str, String)], tensors: &[Tensor]) -> Result<()> {
    for (name, dtype, shape, bytes) in tensors {
        let wanted = size(*dtype, shape);
        if wanted != Some(bytes.len()) {
            let wanted = wanted.map_or("more".into(), |n| n.to_string());
            return Err(Error::file(
                path,
                format!("tensor {name:?}: wanted {wanted} bytes for {dtype} {shape:?}, got {}", bytes.len()),
            ));
        }
    }
    let entries: Vec<_> = tensors.iter().map(|(name, dtype, shape, _)| (name.clone(), *dtype, shape.clone())).collect();
    write_streamed(path, more, &entries, |i, out| Ok(out.write_all(tensors[i].3)?))
}

/// What a streamed tensor's bytes fail of: the disk, or the tensor itself.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// What the file said.
    Disk(std::io::Error),
    /// Why there are no bytes.
    Source(Error),
}

impl From<std::io::Error> for Stopped {
    fn from(error: std::io::Error) -> Stopped {
        Stopped::Disk(error)
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Stopped {
        Stopped::Source(error)
    }
}

fn size(dtype: DType, shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |n, d| n.checked_mul(*d))
}

/// The same, tensor by tensor: `each` writes the bytes of the tensor with this index, as many as dtype and shape say.
pub(crate) fn write_streamed(
    path: &Path,
    more: &[(&str, String)],
    tensors: &[(String, DType, Vec<usize>)],
    mut each: impl FnMut(usize, &mut dyn std::io::Write) -> std::result::Result<(), Stopped>,
) -> Result<()> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by(|a, b| tensors[*a].0.cmp(&tensors[*b].0));
    if let Some([first, _]) = order.array_windows().find(|[a, b]| tensors[*a].0 == tensors[*b].0) {
        return Err(Error::file(path, format!("tensor {:?}: wanted once, got twice", tensors[*first].0)));
    }
    let text = |text: &str| serde_json::Value::from(text);
    let mut header = String::from(r#"{"__metadata__":{"format":"pt""#);
    header.extend(more.iter().map(|(name, value)| format!(",{}:{}", text(name), text(value))));
    header.push('}');
    let mut start = 0usize;
    for (name, dtype, shape) in order.iter().map(|i| &tensors[*i]) {
        let too_large = || Error::file(path, format!("tensor {name:?}: {dtype} {shape:?} are more bytes than a file can hold"));
        let end = size(*dtype, shape).and_then(|n| start.checked_add(n)).ok_or_else(too_large)?;
        let (key, shape) = (text(name), serde_json::Value::from(shape.as_slice()));
        header += &format!(r#",{key}:{{"dtype":"{}","shape":{shape},"data_offsets":[{start},{end}]}}"#, dtype_name(*dtype));
        start = end;
    }
    header.push('}');
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut source = None;
    let written = runtime::host::write_file(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        for i in order {
            match each(i, out) {
                Ok(()) => {}
                Err(Stopped::Disk(error)) => return Err(error),
                Err(Stopped::Source(error)) => {
                    let text = error.to_string();
                    source = Some(error);
                    return Err(std::io::Error::other(text));
                }
            }
        }
        Ok(())
    });
    match source {
        Some(error) => Err(error),
        None => Ok(written?),
    }
}
