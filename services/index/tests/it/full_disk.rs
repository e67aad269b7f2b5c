//! A full disk under the view. Needs a file system of a few MB, so it runs on request:
//!
//! ```text
//! mount -t tmpfs -o size=4m tmpfs /mnt/small
//! E2LLM_SMALL_DISK=/mnt/small cargo test -p e2llm-index --test it full_disk
//! ```

use std::fs;

use e2llm_api::ErrorCode;
use e2llm_index::IndexService;

use super::support::{Site, all, commit, get, record};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_resource_exhausted_and_passes_when_space_returns() {
    let Some(small) = std::env::var_os("E2LLM_SMALL_DISK").map(std::path::PathBuf::from) else {
        eprintln!("E2LLM_SMALL_DISK is not set: nothing was tested");
        return;
    };
    let site = Site::new();
    let index = IndexService::open(site.store().await, &small.join("index"), "main").await.unwrap();
    commit(&index, vec![record("first")]).await.unwrap();
    fs::write(small.join("ballast"), vec![1; 1 << 20]).unwrap();
    let mut acknowledged = vec!["first".to_owned()];
    let mut refusals = 0;
    for n in 0..400 {
        let records: Vec<_> = (0..50).map(|m| record(&format!("d{n}-{m}"))).collect();
        match commit(&index, records).await {
            Ok(_) => acknowledged.extend((0..50).map(|m| format!("d{n}-{m}"))),
            Err(status) => {
                assert_eq!(ErrorCode::of(&status), ErrorCode::ResourceExhausted, "{status}");
                refusals += 1;
                if refusals == 3 {
                    break;
                }
            }
        }
    }
    assert_eq!(refusals, 3, "the disk did not fill up");
    fs::remove_file(small.join("ballast")).unwrap();
    commit(&index, vec![record("last")]).await.unwrap();
    acknowledged.push("last".to_owned());
    for id in &acknowledged {
        assert!(get(&index, id).await.is_ok(), "{id} was acknowledged and is lost");
    }
    assert!(all(&index).await.len() >= acknowledged.len());
    assert_eq!(index.verify().await.unwrap(), []);
}
