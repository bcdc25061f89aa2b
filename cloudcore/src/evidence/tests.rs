//! Other clusters and other histories, with a small API server.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::PostParams;
use serde_json::{Value, json};

use super::gate::gated;
use super::*;
use crate::hub::tests::api::Api as Server;

const RECORD: &str = "/apis/coordination.k8s.io/v1/namespaces/holdfast/leases/holdfast-epoch";

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

async fn start(server: &Server) -> Evidence {
    server.name_cluster("ours");

    Evidence::start(server.client.clone(), "holdfast", "test", "ours".to_owned()).await.unwrap()
}

fn record(epoch: u64, beat: u64) -> Value {
    let (epoch, beat) = (epoch.to_string(), beat.to_string());
    let annotations = json!({ "holdfast.dev/epoch": epoch, "holdfast.dev/beat": beat });

    json!({ "metadata": { "name": "holdfast-epoch", "resourceVersion": "1", "annotations": annotations } })
}

async fn write(client: &Client, name: &str) -> Result<(), String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "holdfast");
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    let written = maps.create(&PostParams::default(), &map).await;

    written.map(drop).map_err(|error| telemetry::chain(&error))
}

#[test]
fn nothing_is_written_to_another_cluster_and_everything_goes_on_after() {
    block_on(async {
        let server = Server::start().await;
        let evidence = start(&server).await;
        let client = gated(server.client.clone(), evidence.clone());
        write(&client, "one").await.unwrap();

        server.name_cluster("another");
        evidence.doubt();
        let refused = write(&client, "two").await.unwrap_err();
        assert!(refused.contains("kube-system has UID another"), "{refused}");
        assert!(matches!(evidence.look().await, Err(Doubt::OtherCluster { .. })));
        assert!(!server.has("/api/v1/namespaces/holdfast/configmaps/two"));

        server.name_cluster("ours");
        evidence.look().await.unwrap();
        write(&client, "three").await.unwrap();
    });
}

#[test]
fn a_record_that_goes_back_begins_an_epoch() {
    block_on(async {
        let server = Server::start().await;
        let evidence = start(&server).await;
        assert_eq!(evidence.epoch(), 1);
        for (put, expected) in [
            (record(1, 5), 1),
            (record(1, 3), 2),
            (record(7, 0), 7),
            (json!({ "metadata": { "name": "holdfast-epoch", "resourceVersion": "1" } }), 8),
        ] {
            server.put(RECORD, put.clone());
            evidence.look().await.unwrap();
            assert_eq!(evidence.epoch(), expected, "{put}");
        }
        let other = Evidence::start(server.client.clone(), "holdfast", "2", "ours".to_owned());
        assert_eq!(other.await.unwrap().epoch(), 8, "replicas agree");
    });
}

#[test]
fn what_edges_were_taken_to_begins_epochs_and_makes_watches_catch_up() {
    block_on(async {
        let server = Server::start().await;
        let evidence = start(&server).await;
        let learn = async |epoch, revision| {
            let mut marks = HighWater::default();
            marks.raise(Kind::Pod, Point { epoch, revision });
            evidence.learn(&marks).await;
            let orders = evidence.orders().borrow().clone();
            (orders.epoch, orders.catch_up.get(&Kind::Pod).map_or(0, |mark| mark.revision))
        };
        assert_eq!(learn(1, 40).await, (1, 40));
        assert_eq!(learn(1, 30).await, (1, 40));
        assert_eq!(learn(1 + EPOCH_LEAP_MAX + 1, 30).await, (1, 40), "an edge that lies");
        assert_eq!(learn(3, 30).await, (4, 40), "the record was restored with the rest");
        assert!(!evidence.restored_says_edge(4).await.unwrap(), "one claim a minute");
    });
}
