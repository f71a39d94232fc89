//! Stores that change their back end, and what an interruption leaves.

use super::*;

const PAIRS: [(Durable, Durable); 2] = [(Backend::Sled, Backend::Fjall), (Backend::Fjall, Backend::Sled)];

async fn convert(durable: Durable, path: &Path) -> Result<Option<&'static str>, OpenError> {
    durable(files(path)).convert().await
}

async fn has_rows(durable: Durable, path: &Path, count: usize) {
    let storage = open(durable, path).await.unwrap();
    assert_eq!(rows(&storage).await.unwrap().len(), count);
    storage.close().await.unwrap();
}

#[tokio::test]
async fn a_converted_store_has_all_its_rows_and_the_other_back_end() {
    for (from, to) in PAIRS {
        let folder = filled(from, 1_200).await;
        let before = engine_folder(folder.path());
        let expected = before.file_name().unwrap().to_str().unwrap();
        assert_eq!(convert(to, folder.path()).await.unwrap(), Some(expected));
        assert!(!before.exists());
        assert_eq!(convert(to, folder.path()).await.unwrap(), None);
        has_rows(to, folder.path(), 1_200).await;
        let refused = open(from, folder.path()).await.err().unwrap();
        assert!(refused.to_string().contains("`ganglion convert`"), "{refused}");
    }
}

#[tokio::test]
async fn a_store_in_use_is_not_converted() {
    for (from, to) in PAIRS {
        let folder = tempfile::tempdir().unwrap();
        let storage = open(from, folder.path()).await.unwrap();
        fill(&storage, 0..20).await;
        let refused = convert(to, folder.path()).await.err().unwrap();
        assert!(matches!(refused, OpenError::Locked { .. }), "{refused}");
        storage.close().await.unwrap();
        has_rows(from, folder.path(), 20).await;
    }
}

#[tokio::test]
async fn an_interrupted_conversion_leaves_one_store_or_the_other() {
    for (from, to) in PAIRS {
        let old = filled(from, 20).await;
        let new = tempfile::tempdir().unwrap();
        copy(old.path(), new.path());
        convert(to, new.path()).await.unwrap();
        let new_engine = engine_folder(new.path());
        let new_name = new_engine.file_name().unwrap();
        let interrupted = |at: &str| {
            let folder = tempfile::tempdir().unwrap();
            copy(old.path(), folder.path());
            copy(&new_engine, &folder.path().join(at).join(new_name));
            folder
        };
        // While the rows were copied.
        let folder = interrupted("converting");
        has_rows(from, folder.path(), 20).await;
        assert!(!folder.path().join("converting").exists());
        // Once they were, before the old files were out of their place, and after that.
        for old_is_out in [false, true] {
            let folder = interrupted("converted");
            if old_is_out {
                fs::rename(engine_folder(folder.path()), folder.path().join("converted").join("old"))
                    .unwrap();
            }
            has_rows(to, folder.path(), 20).await;
            assert!(!folder.path().join("converted").exists());
        }
        // Before the old ones were removed.
        let folder = tempfile::tempdir().unwrap();
        copy(new.path(), folder.path());
        copy(&engine_folder(old.path()), &folder.path().join("converted").join("old"));
        has_rows(to, folder.path(), 20).await;
        assert!(!folder.path().join("converted").exists());
    }
}
