//! A launch as the driver takes it, and in words, for errors: kernel, shape and arguments by the names that its source gives them.

use crate::{Arg, Kernel, Launch};
use cudarc::driver::sys::{self, CUlaunchAttribute, CUlaunchAttributeID as Id, CUlaunchAttributeValue as Value, CUlaunchConfig};

/// What a launch asks for beyond its grid: clusters along x, all blocks resident at once.
pub fn attributes(l: &Launch) -> Vec<CUlaunchAttribute> {
    let mut all = Vec::new();
    let mut ask = |id, value| all.push(CUlaunchAttribute { id, pad: [0; 4], value });
    if l.cluster > 1 {
        let across = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: l.cluster, y: 1, z: 1 };
        ask(Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, Value { clusterDim: across });
    }
    if l.cooperative {
        ask(Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, Value { cooperative: 1 });
    }
    all
}

/// The driver's form of it, which reads `attributes` where they lie.
pub fn config(l: &Launch, stream: sys::CUstream, attributes: &mut [CUlaunchAttribute]) -> CUlaunchConfig {
    let [x, y, z] = l.grid;
    CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: l.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: l.shared,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

/// `rope_rotate grid [4, 1, 1] block 256 shared 0 (x 0x7f1000, pairs 1024, back 0)`
pub fn described(k: &Kernel, l: &Launch, args: &[Arg<'_>]) -> String {
    let names = parameters(k.cuda, k.name);
    let one = |(i, arg): (usize, &Arg<'_>)| format!("{} {}", names.get(i).copied().unwrap_or("?"), value(arg));
    let args: Vec<String> = args.iter().enumerate().map(one).collect();
    let variant: String = l.defines.0.iter().map(|(name, value)| format!(" {name}={value}")).collect();
    let cluster = if l.cluster > 1 { format!(" cluster {}", l.cluster) } else { String::new() };
    let cooperative = if l.cooperative { " cooperative" } else { "" };
    let (grid, args) = (l.grid, args.join(", "));
    format!("{}{variant} grid {grid:?}{cluster}{cooperative} block {} shared {} ({args})", k.name, l.block, l.shared)
}

fn value(arg: &Arg<'_>) -> String {
    match arg {
        Arg::Ptr(p) => format!("{:#x}", p.0),
        Arg::U32(v) => v.to_string(),
        Arg::U64(v) => v.to_string(),
        Arg::Bits(v) => format!("{v:?}"),
        Arg::Struct(bytes) => format!("a struct of {} bytes", bytes.len()),
        Arg::TensorMap(map) => format!("a tensor map of {:?} at {:#x}", map.dims, map.base.0),
    }
}

/// Names of an entry point's parameters: the last word of each declaration.
fn parameters<'a>(source: &'a str, name: &str) -> Vec<&'a str> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    let after = source.match_indices(name).map(|(at, _)| &source[at + name.len()..]);
    let Some(list) = after.filter_map(|rest| rest.strip_prefix('(')?.split(')').next()).next() else { return Vec::new() };
    list.split(',').filter_map(|one| one.trim_end().rsplit(|c| !word(c)).next()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Defines, Ptr};

    #[test]
    fn arguments_have_the_names_of_the_source() {
        let source = "// turns(x)\nextern \"C\" __global__ void turn_back(float *y) {}\n\
            extern \"C\" __global__ void turn(float *__restrict__ x, const u32 *pos,\n    u64 pairs, float s) { other(turn); }";
        let k = Kernel { name: "turn", cuda: source, ascend: "" };
        let l = Launch { grid: [4, 1, 1], block: 256, defines: Defines(vec![("TABLE", 1)]), ..Launch::default() };
        let args = [Arg::Ptr(Ptr(4096)), Arg::Ptr(Ptr(0)), Arg::U64(9), Arg::Bits(0.5), Arg::U32(7)];
        let text = described(&k, &l, &args);
        assert_eq!(text, "turn TABLE=1 grid [4, 1, 1] block 256 shared 0 (x 0x1000, pos 0x0, pairs 9, s 0.5, ? 7)");
        let text = described(&k, &Launch { cluster: 2, cooperative: true, ..l }, &[]);
        assert_eq!(text, "turn TABLE=1 grid [4, 1, 1] cluster 2 cooperative block 256 shared 0 ()");
        assert_eq!(parameters("nothing here", "turn"), [""; 0]);
    }
}
