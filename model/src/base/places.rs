//! Where every tensor of a base lies, before anything is allocated: in the base's arena, and where that holds an f32 master, the bf16
//! matrices that the rooms read in one beside it.

use super::{Layer, Matrix, Norm};
use crate::config::{Role, Spec};
use crate::storage::{Held, Storage};
use crate::{Error, Result};
use kernels::adamw::{self, Table, Target};
use runtime::{Arena, DType, Plan, Region, Stream, View};
use std::collections::BTreeMap;

/// Where a tensor lies in the arena: a layer's modules come before its later norms. Gradient norms and fresh weights count in it.
pub(super) fn place(role: Role) -> (usize, bool) {
    match role {
        Role::Embedding | Role::Positions => (0, false),
        Role::Norm(layer, which) | Role::NormBias(layer, which) => (layer + 1, which > 0),
        Role::HeadNorm(layer, _) | Role::Weight(layer, _) | Role::Bias(layer, _) => (layer + 1, false),
        Role::FinalNorm | Role::FinalNormBias | Role::Score | Role::Head => (usize::MAX, false),
    }
}

/// A region and what it holds.
type Place = (Region, Held);

/// Regions by role.
#[derive(Default)]
pub(super) struct Places {
    /// Of the base's arena.
    pub plan: Plan,
    own: BTreeMap<Role, Place>,
    copies_plan: Plan,
    copies: BTreeMap<Role, Place>,
}

/// A matrix's region, which those that lie together share.
fn lay(plan: &mut Plan, of: &BTreeMap<Role, Place>, storage: &Storage, spec: &Spec, dtype: DType) -> Place {
    let Spec { role, here: [n, k], .. } = *spec;
    let held = storage.held(role, n);
    let first = match role {
        Role::Weight(layer, module) => of.get(&Role::Weight(layer, storage.group(layer, module).0.start)),
        _ => None,
    };
    (first.map_or_else(|| plan.region(held.len(k), dtype), |(region, _)| *region), held)
}

impl Places {
    /// Of these tensors, which are in the order of the arena; `dtype` is the storage of a matrix where the rooms read it.
    pub fn new(specs: &[Spec], storage: &Storage, dtype: &dyn Fn(&str) -> Result<DType>) -> Result<Places> {
        let mut places = Places::default();
        for spec in specs {
            let (role, [n, k]) = (spec.role, spec.here);
            let own = if role.matrix() && !storage.master {
                lay(&mut places.plan, &places.own, storage, spec, dtype(&spec.name)?)
            } else if role.matrix() {
                let copy = lay(&mut places.copies_plan, &places.copies, storage, spec, dtype(&spec.name)?);
                places.copies.insert(role, copy);
                (places.plan.region(storage.alone(n).len(k), DType::F32), storage.alone(n))
            } else {
                (places.plan.region(k, DType::F32), storage.alone(n))
            };
            places.own.insert(role, own);
        }
        Ok(places)
    }

    pub fn get(&self, role: Role) -> Result<Region> {
        Ok(self.at(role)?.0)
    }

    fn at(&self, role: Role) -> Result<Place> {
        self.own.get(&role).copied().ok_or_else(|| Error::Batch(format!("the model has no {role:?}")))
    }

    pub fn matrix(&self, specs: &[Spec], weight: Role, bias: Option<Role>) -> Result<Matrix> {
        let [n, k] = specs.iter().find(|s| s.role == weight).map_or([0, 0], |s| s.here);
        let (copy, (weight, held)) = (self.copies.get(&weight).copied(), self.at(weight)?);
        Ok(Matrix { weight, bias: bias.and_then(|b| self.get(b).ok()), n, k, held, copy })
    }

    pub fn norm(&self, weight: Role, bias: Role) -> Result<Norm> {
        Ok(Norm { weight: self.get(weight)?, bias: self.get(bias).ok() })
    }

    pub fn layer(&self, specs: &[Spec], layer: usize, modules: usize) -> Result<Layer> {
        let norm = |which| self.norm(Role::Norm(layer, which), Role::NormBias(layer, which));
        let module = |m| self.matrix(specs, Role::Weight(layer, m), Some(Role::Bias(layer, m)));
        let heads = [0, 1].map(|i| self.get(Role::HeadNorm(layer, i)).ok());
        Ok(Layer {
            input_norm: norm(0)?,
            attention_norm: norm(1).ok(),
            middle_norm: norm(2)?,
            mlp_norm: norm(3).ok(),
            head_norms: heads[0].zip(heads[1]).map(|(q, k)| [q, k]),
            modules: (0..modules).map(module).collect::<Result<_>>()?,
        })
    }

    /// Allocates the copies, where there is a master.
    pub fn copies(&self, s: &Stream, specs: &[Spec]) -> Result<Option<Copies>> {
        if self.copies.is_empty() {
            return Ok(None);
        }
        let arena = Arena::new(s, self.copies_plan.bytes())?;
        let mut targets = Vec::new();
        for spec in specs {
            let Some((region, held)) = self.copies.get(&spec.role) else { continue };
            let weight = held.weight(arena.view(*region)?, spec.here[1])?.rows("base")?;
            targets.push(Target::whole(self.get(spec.role)?.words(), weight));
        }
        let table = Table::new(s, &targets)?;
        Ok(Some(Copies { arena, table }))
    }
}

/// The bf16 copies of a master's matrices.
#[derive(Debug)]
pub(super) struct Copies {
    arena: Arena,
    table: Table,
}

impl Copies {
    pub fn view(&self, region: Region) -> Result<View<'_>> {
        Ok(self.arena.view(region)?)
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> usize {
        self.arena.bytes() + self.table.bytes()
    }

    /// What a step of the optimizer keeps up.
    pub fn kept(&self) -> Result<adamw::Copies<'_>> {
        Ok(self.table.over(self.arena.flat())?)
    }
}
