//! What is wrong with a recipe, in words that name the remedy.

use e2llm_model::AdapterForm;

use super::{DecoderMode, Features, Recipe, Stage, Start};

impl Recipe {
    pub(super) fn problem(&self) -> Option<String> {
        self.own_problem()
            .map(str::to_owned)
            .or_else(|| {
                let stages = self.stages.iter().enumerate();
                stages.filter_map(|(index, s)| s.problem().map(|p| format!("stage {}: {p}", index + 1))).next()
            })
            .or_else(|| {
                let trains = self.encoder_lora.is_none() && self.stages.iter().any(|s| s.encoder.is_some());
                trains.then(|| "a stage trains the encoder; give encoder_lora: { rank, scale }".to_owned())
            })
            .or_else(|| {
                let changes = |stage: &Stage| stage.features.is_some_and(|f| f != Features::Bridge);
                let misplaced = self.stages.iter().any(changes)
                    || self.features != Features::TableOnly && self.stages.iter().any(|s| s.features.is_some());
                misplaced.then(|| "a stage can only turn features: table_only into bridge".to_owned())
            })
    }

    fn own_problem(&self) -> Option<&'static str> {
        let zero_rank = self.encoder_lora.is_some_and(|lora| lora.rank == 0);
        if self.ratio == 0 || self.chunk_tokens == 0 || self.lora_rank == 0 || zero_rank {
            return Some("ratio, chunk_tokens, lora_rank and encoder_lora.rank must be at least 1");
        }
        let is_new = self.pretrain.is_some() || self.features != Features::Encoder || self.decoder == DecoderMode::Full;
        if self.start == Start::Bundle && is_new {
            return Some(
                "a recipe that starts from a bundle has no pretraining, features: encoder, and no decoder: full",
            );
        }
        if self.stages.is_empty() {
            return Some("there is no stage to train");
        }
        if self.pretrain.as_ref().is_some_and(|p| p.batch == 0 || p.passages == 0 || p.negatives == 0) {
            return Some("pretrain needs a batch, passages and negatives of at least 1");
        }
        if self.pretrain.as_ref().is_some_and(|p| p.ratio == Some(0)) || self.stages.iter().any(|s| s.ratio == Some(0))
        {
            return Some("the ratio of a stage must be at least 1");
        }
        if self.form != AdapterForm::GatedSegments && self.gate_heads.is_some() {
            return Some("gate_heads belong to form: gated_segments; remove them or change the form");
        }
        if self.ordered_heads && self.gate_heads.is_none() {
            return Some("ordered_heads need gate_heads: say how many");
        }
        let attention = matches!(self.form, AdapterForm::AttentionPooling { .. });
        if attention && self.features != Features::Encoder {
            return Some("the word-piece table works with gated_segments and one_vector; use features: encoder");
        }
        None
    }
}

impl Stage {
    fn problem(&self) -> Option<&'static str> {
        let is_range = |(from, to): (usize, usize)| from > 0 && from <= to;
        if self.batch == 0 || !is_range(self.chunks) || !is_range(self.window) || !is_range(self.excerpts) {
            Some("needs a batch, and chunks, window and excerpts as [fewest, most], at least 1")
        } else if self.max_target < 4 {
            Some("max_target must be at least 4 tokens")
        } else if !self.mix.iter().any(|(_, share)| *share > 0.0) || self.mix.iter().any(|(_, share)| *share < 0.0) {
            Some("needs a mix of objectives with shares above 0, such as [[reconstruct, 0.5], [continue, 0.5]]")
        } else if !(0.0..=1.0).contains(&self.expand) || !(0.0..=1.0).contains(&self.distill) {
            Some("expand and distill are shares between 0 and 1")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "
seed: 1
ratio: 4
chunk_tokens: 64
stages:
  - { steps: 1, batch: 1, max_target: 8, chunks: [1, 1], mix: [[reconstruct, 1]], warm_up: 0, final_rate: 1, adapter: { learning_rate: 1e-3 } }
";

    #[test]
    fn every_recipe_of_the_repository_parses() {
        let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../bundles/recipes");
        let mut read = 0;
        for directory in [directory.join("ablation"), directory] {
            for entry in std::fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|kind| kind == "yaml") {
                    let recipe = Recipe::parse(&std::fs::read_to_string(&path).unwrap());
                    recipe.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                    read += 1;
                }
            }
        }
        assert!(read >= 2, "only {read} recipes found");
    }

    #[test]
    fn forms_modes_and_stage_ratios_are_read() {
        let text =
            MINIMAL.replace("ratio: 4", "ratio: 4\nform: { attention_pooling: { queries: 8 } }\ndecoder: frozen");
        let recipe = Recipe::parse(&text).unwrap();
        assert_eq!(recipe.form, AdapterForm::AttentionPooling { queries: 8, heads: 4 });
        assert_eq!((recipe.lora(), recipe.makes_bundle(), recipe.ratio_at(0)), (None, true, 4));
        let mut curriculum = Recipe::parse(MINIMAL).unwrap();
        curriculum.stages = vec![
            Stage { ratio: Some(1), ..curriculum.stages[0].clone() },
            curriculum.stages[0].clone(),
            Stage { ratio: Some(2), ..curriculum.stages[0].clone() },
        ];
        assert_eq!([0, 1, 2, 3].map(|index| curriculum.ratio_at(index)), [1, 1, 2, 2]);
        curriculum.features = Features::TableOnly;
        curriculum.stages[1].features = Some(Features::Bridge);
        use Features::{Bridge, TableOnly};
        assert_eq!([0, 1, 2, 3].map(|index| curriculum.features_at(index)), [TableOnly, Bridge, Bridge, Bridge]);
    }

    #[test]
    fn what_cannot_be_trained_is_refused_with_its_remedy() {
        for (from, to, remedy) in [
            ("ratio: 4", "ratio: 0", "at least 1"),
            ("mix: [[reconstruct, 1]]", "mix: []", "mix of objectives"),
            ("warm_up: 0", "warm_up: 0, distill: 2", "between 0 and 1"),
            ("warm_up: 0", "warm_up: 0, encoder: { learning_rate: 1e-4 }", "encoder_lora"),
            ("ratio: 4", "ratio: 4\nordered_heads: true", "gate_heads"),
            ("ratio: 4", "ratio: 4\nstart: bundle\nfeatures: bridge", "features: encoder"),
            ("ratio: 4", "ratio: 4\nstart: bundle\ndecoder: full", "no decoder: full"),
            ("warm_up: 0", "warm_up: 0, features: bridge", "table_only into bridge"),
            ("warm_up: 0", "warm_up: 0, excerpts: [3, 2]", "excerpts as [fewest, most]"),
            (
                "ratio: 4",
                "ratio: 4\nform: { attention_pooling: { queries: 2 } }\nfeatures: table_only",
                "features: encoder",
            ),
            ("ratio: 4", "ratio: 4\nratios: 3", "unknown field"),
        ] {
            let error = Recipe::parse(&MINIMAL.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(remedy), "{to}: {error}");
        }
    }
}
