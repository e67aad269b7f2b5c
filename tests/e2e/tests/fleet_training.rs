//! Training by encoder-decoder pairs in processes of their own, with real models and a recipe of a few steps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::PathBuf;

use e2llm_e2e::{Service, Workplace, eventually_true};
use serde_json::{Value, json};

/// Two stages, so that rounds have to keep them apart.
const RECIPE: &str = "
seed: 7
ratio: 4
chunk_tokens: 32
lora_rank: 2
lora_scale: 2.0
pretrain: { steps: 2, batch: 2, negatives: 64, passages: 6, adapter: { learning_rate: 2.0e-3 } }
stages:
  - { steps: 3, batch: 2, max_target: 12, chunks: [1, 2], mix: [[reconstruct, 0.7], [continue, 0.3]], warm_up: 2,
      final_rate: 0.5, adapter: { learning_rate: 5.0e-4 }, lora: { learning_rate: 1.5e-3 } }
  - { steps: 2, batch: 2, max_target: 12, chunks: [1, 1], mix: [[reconstruct, 1.0]], warm_up: 0,
      final_rate: 0.1, adapter: { learning_rate: 2.0e-4 }, lora: { learning_rate: 6.0e-4 } }
";

const FILES: [&str; 3] = ["adapter.safetensors", "bundle.json", "lora.safetensors"];

/// Index, coordinator and pairs, each a process, on one store; every process can be held at its fail points.
struct Fleet {
    place: Workplace,
    coordinator: Option<Service>,
    encoders: Vec<Option<Service>>,
    decoders: Vec<Option<Service>>,
    _index: Service,
    index_url: String,
}

impl Fleet {
    fn start(pairs: usize) -> Self {
        let place = workplace();
        let index = Service::start(None, &["index", "--store", &store(&place)], &[]);
        let index_url = index.url();
        let mut fleet = Self { place, coordinator: None, encoders: vec![], decoders: vec![], _index: index, index_url };
        fleet.coordinator = Some(fleet.serve("coordinator", None));
        for number in 0..pairs {
            fleet.encoders.push(Some(fleet.serve(&format!("encoder-{number}"), None)));
            fleet.decoders.push(Some(fleet.serve(&format!("decoder-{number}"), None)));
        }
        fleet
    }

    /// A process by its name, at a free port or at `listen`.
    fn serve(&self, name: &str, listen: Option<&str>) -> Service {
        let points = self.points(name);
        fs::create_dir_all(&points).unwrap();
        let vars = [("E2LLM_FAILPOINTS".to_owned(), points.to_str().unwrap().to_owned())];
        let store = store(&self.place);
        let (role, number) = name.split_once('-').unwrap_or((name, "0"));
        let mut flags = vec![role, "--store", &store];
        if role == "coordinator" {
            flags.extend(["--lease", "2s", "--heartbeat", "500ms"]);
            return Service::start(listen, &flags, &vars);
        }
        let coordinator = self.coordinator.as_ref().unwrap().url();
        flags.extend(["--index-url", &self.index_url, "--coordinator-url", &coordinator]);
        let encoder = self.encoders.get(number.parse::<usize>().unwrap()).and_then(Option::as_ref).map(Service::url);
        if let Some(url) = encoder.as_ref().filter(|_| role == "decoder") {
            flags.extend(["--encoder-url", url]);
        }
        Service::start(listen, &flags, &vars)
    }

    fn points(&self, name: &str) -> PathBuf {
        self.place.path("points").join(name)
    }

    /// Holds a process when it reaches a point for the `nth` time from now on.
    fn arm(&self, name: &str, point: &str, nth: usize) {
        fs::write(self.points(name).join(point), format!("{nth} {name}{point}")).unwrap();
    }

    fn is_held(&self, name: &str, point: &str) -> bool {
        self.points(name).join(format!("{point}.held")).exists()
    }

    /// Waits until a process stands at a point, kills it there and starts it again at its address.
    fn kill_at(&mut self, name: &str, point: &str) {
        eventually_true(&format!("{name} at {point}"), || self.is_held(name, point));
        assert_ne!(self.status("killed")["state"], "succeeded", "the fault came when the job had ended");
        let slot = match name.split_once('-') {
            Some(("encoder", number)) => &mut self.encoders[number.parse::<usize>().unwrap()],
            Some((_, number)) => &mut self.decoders[number.parse::<usize>().unwrap()],
            None => &mut self.coordinator,
        };
        let service = slot.take().unwrap();
        let address = service.address().to_owned();
        service.kill();
        fs::remove_file(self.points(name).join(format!("{point}.held"))).unwrap();
        let restarted = Some(self.serve(name, Some(&address)));
        match name.split_once('-') {
            Some(("encoder", number)) => self.encoders[number.parse::<usize>().unwrap()] = restarted,
            Some((_, number)) => self.decoders[number.parse::<usize>().unwrap()] = restarted,
            None => self.coordinator = restarted,
        }
    }

    fn run(&self, arguments: &[&str]) -> Vec<Value> {
        let url = self.coordinator.as_ref().unwrap().url();
        self.place.json(&[&["--server", &url], arguments].concat()).succeeded().rows()
    }

    fn submit(&self, job: &str, pairs: &str, local_steps: &str) {
        let recipe = ["jobs", "submit", "train", "--recipe", "tiny.yaml", "--input", "corpus.jsonl", "--job", job];
        self.run(&[&recipe[..], &["--pairs", pairs, "--local-steps", local_steps, "--name", "tiny"]].concat());
    }

    fn status(&self, job: &str) -> Value {
        self.run(&["jobs", "show", job]).remove(0)
    }

    /// Waits for the job's end and fetches its bundle: the contents of its files.
    fn bundle(&self, job: &str) -> Vec<Vec<u8>> {
        let last = self.run(&["jobs", "watch", job]).pop().unwrap();
        assert_eq!((&last["state"], &last["rows_failed"]), (&json!("succeeded"), &json!(0)), "{last}");
        self.run(&["jobs", "bundle", job, "--output", job]);
        FILES.map(|file| fs::read(self.place.path(job).join(file)).unwrap()).to_vec()
    }
}

fn store(place: &Workplace) -> String {
    place.path("store").to_str().unwrap().to_owned()
}

fn workplace() -> Workplace {
    let place = Workplace::bare();
    place.write("tiny.yaml", RECIPE);
    let documents = [("readme", include_str!("../../../README.md")), ("licence", include_str!("../../../LICENSE"))];
    place.write("corpus.jsonl", documents.map(|(id, text)| json!({"id": id, "text": text}).to_string()).join("\n"));
    place
}

#[test]
fn a_pair_over_grpc_learns_what_one_process_learns() {
    let fleet = Fleet::start(1);
    fleet.submit("pair", "1", "2");
    let trained = fleet.bundle("pair");
    let place = workplace();
    let train = ["train", "--recipe", "tiny.yaml", "--input", "corpus.jsonl", "--output", "alone"];
    place.json(&train).succeeded();
    for (file, bytes) in FILES.iter().zip(&trained).filter(|(file, _)| **file != "bundle.json") {
        // The encoder process has no other way to learn than the gradients that came over the wire.
        let alone = fs::read(place.path("alone/bundle").join(file)).unwrap();
        assert!(alone == *bytes, "{file} differs from what one process learns");
    }
    let status = fleet.status("pair");
    assert_eq!((&status["train"]["rounds"], &status["train"]["steps_done"]), (&json!(5), &json!(5)), "{status}");
    let shares = fleet.run(&["jobs", "result", "pair"]);
    assert_eq!(shares.len(), 5, "pretraining, three rounds of one member, and the export: {shares:?}");
    assert!(shares[1]["targets"].as_u64().unwrap() > 0, "{shares:?}");
}

#[test]
fn two_pairs_of_which_every_process_is_killed_learn_what_they_learn_undisturbed() {
    let mut fleet = Fleet::start(2);
    fleet.submit("whole", "2", "2");
    let whole = fleet.bundle("whole");
    fleet.arm("decoder-0", "decoder.trained_step", 2);
    fleet.arm("encoder-1", "encoder.trained_step", 3);
    fleet.arm("coordinator", "coordinator.round_averaged", 3);
    fleet.submit("killed", "2", "2");
    fleet.kill_at("decoder-0", "decoder.trained_step");
    fleet.kill_at("encoder-1", "encoder.trained_step");
    fleet.kill_at("coordinator", "coordinator.round_averaged");
    let killed = fleet.bundle("killed");
    assert!(killed == whole, "what was lost and done again is not what it would have been");
    assert!(fleet.status("killed")["retries"].as_u64().unwrap() >= 2, "{}", fleet.status("killed"));
}
