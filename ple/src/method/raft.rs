//! RAFT, the yardstick: K answers to every query, of which the one with the highest reward (the first of equals) is trained
//! like a given answer under the plain query.
//!
//! L = −Σ logp / N over the tokens of the chosen answers (`raft_loss_on` all: of query and answer), N = those of the whole optimizer
//! batch: the loss of [`super::sft`]. No end token is added to an answer that has none.
//! Source: ALGORITHMS §3.3 (LMFlow's `raft_aligner`, strategy "local", K = 1/top_reward_percentage; Dong et al. 2023; loss on the
//! completion alone, so that it trains the tokens that PLE trains). An answer of fewer than two characters, with `raft_forbidden` in
//! it, without a token or without finite numbers is never chosen; a query without another is left out.

use super::{Answer, Example, Group, Loss, Method, Metrics, Needs, Outputs, Rollout, Sampling, Side, Totals, group, sft::Sft};
use crate::Result;
use crate::config::{Config, LossOn};
use model::Batch;

/// Best of K.
#[derive(Clone, Debug)]
pub struct Raft {
    config: Config,
    samples: u32,
}

impl Raft {
    /// `samples` is K; how they are drawn is with the settings.
    pub fn new(config: &Config, samples: u32) -> Raft {
        Raft { config: config.clone(), samples }
    }
}

/// Characters of an answer that are worth imitating.
const SHORT: usize = 2;

/// The first of the answers with the highest reward among those that can be trained.
fn best(c: &Config, answers: Vec<Answer>) -> Option<Answer> {
    let allowed = |a: &Answer| !c.raft_forbidden.as_ref().is_some_and(|text| a.text.contains(text));
    let long = |a: &Answer| a.text.trim().chars().nth(SHORT - 1).is_some();
    let trainable =
        answers.into_iter().filter(|a| a.is_finite() && a.ids.len() > usize::from(a.finished) && long(a) && allowed(a));
    trainable.reduce(|best, next| if next.reward > best.reward { next } else { best })
}

impl Method for Raft {
    fn rollout(&self, _: u32) -> Rollout {
        Rollout::Sides(vec![Side { principle: false, samples: self.samples, sampling: Sampling::of(&self.config) }])
    }

    fn needs(&self) -> Needs {
        Needs::logp()
    }

    fn label(&mut self, _: u32, groups: Vec<Group>) -> Result<(Vec<Example>, Metrics)> {
        let (mut examples, all) = (Vec::with_capacity(groups.len()), groups.len());
        let (mut nonfinite, mut first, mut chosen) = (0, 0.0, 0.0);
        for (i, group) in groups.into_iter().enumerate() {
            let answers: Vec<Answer> = group.sides.into_iter().flatten().collect();
            nonfinite += usize::from(!answers.iter().all(Answer::is_finite));
            first += answers.first().map_or(0.0, |a| a.reward) / all as f64;
            let Some(answer) = best(&self.config, answers) else { continue };
            chosen += answer.reward;
            let (prompt, ids) = match self.config.raft_loss_on {
                LossOn::Completion => (group.prompt, answer.ids),
                LossOn::All => (Vec::new(), [group.prompt, answer.ids].concat()),
            };
            examples.push(Example { row: group.row, prompt, answers: vec![ids], group: i as u32, ..Example::default() });
        }
        group::bounded(&self.config, nonfinite, all)?;
        let kept = examples.len();
        let metrics = vec![
            ("raft/reward_first", first),
            ("raft/reward_best", chosen / kept.max(1) as f64),
            ("raft/kept", kept as f64),
            ("raft/discarded", (all - kept) as f64),
            ("raft/drop_nonfinite", nonfinite as f64),
        ];
        Ok((examples, metrics))
    }

    fn remarks(&self, labelled: &Metrics) -> Vec<String> {
        let of = |name: &str| labelled.iter().find(|(n, _)| *n == name).map_or(0.0, |(_, v)| *v);
        let (kept, left) = (of("raft/kept"), of("raft/discarded"));
        let line = || format!("{left} of {} queries have no answer that can be imitated", kept + left);
        (left > 0.0).then(line).into_iter().collect()
    }

    fn loss(&self, totals: &Totals, batch: &Batch, out: Outputs<&[f32]>, dout: Outputs<&mut [f32]>) -> Result<Loss> {
        Sft.loss(totals, batch, out, dout)
    }

    fn branch(&self, _: u32) -> &'static str {
        "best"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Command;

    fn answer(id: u32, reward: f64) -> Answer {
        Answer {
            ids: vec![id, 2],
            logps: vec![-1.0, -0.5],
            finished: true,
            reward,
            text: format!("answer {id}"),
            ..Answer::default()
        }
    }

    fn group(row: u32, answers: Vec<Answer>) -> Group {
        Group { row, prompt: vec![1, 7], sides: vec![answers], ..Group::default() }
    }

    fn raft(share: f64) -> Raft {
        Raft::new(&Config { ple_max_nonfinite: share, ..Config::defaults(Command::Train) }, 3)
    }

    #[test]
    fn the_first_of_the_best_is_trained() -> Result<()> {
        let empty = Answer { ids: vec![2], logps: vec![-0.1], finished: true, reward: 9.0, ..Answer::default() };
        let groups = vec![
            group(4, vec![answer(10, 0.25), answer(11, 0.75), answer(12, 0.75)]),
            group(5, vec![empty.clone(), answer(20, -1.0), answer(21, -2.0)]),
            group(6, vec![empty.clone(), empty]),
            group(7, vec![answer(30, f64::NAN), answer(31, 0.0)]),
        ];
        let (examples, metrics) = raft(0.25).label(0, groups.clone())?;
        let got: Vec<_> = examples.iter().map(|e| (e.row, e.group, e.answers[0][0])).collect();
        assert_eq!(got, [(4, 0, 11), (5, 1, 20), (7, 3, 31)]);
        let of = |name: &str| metrics.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        assert_eq!(of("raft/reward_best"), Some((0.75 - 1.0 + 0.0) / 3.0));
        assert_eq!((of("raft/kept"), of("raft/drop_nonfinite")), (Some(3.0), Some(1.0)));
        assert!(raft(0.2).label(0, groups).is_err_and(|e| e.exit_code() == 5 && e.to_string().contains("1 of 4")));
        Ok(())
    }

    #[test]
    fn every_token_has_the_mean_gradient() -> Result<()> {
        let mut batch = Batch::default();
        batch.example(&[1, 7], &[&[11, 12, 2]], 0)?;
        let (logp, mut dlogp) = ([-0.5f32, -1.0, -1.5], [f32::NAN; 3]);
        let totals = Totals { examples: 2.0, tokens: 6.0, ..Totals::default() };
        let dout = Outputs { logp: &mut dlogp[..], value: &mut [][..] };
        let loss = raft(0.0).loss(&totals, &batch, Outputs { logp: &logp, value: &[] }, dout)?;
        assert_eq!((loss.value, dlogp), (0.5, [-1.0 / 6.0; 3]));
        let sides = raft(0.0).rollout(0);
        assert!(matches!(sides, Rollout::Sides(s) if s.len() == 1 && s[0].samples == 3 && !s[0].principle));
        Ok(())
    }
}
