package apiserver

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apiserver/pkg/features"
)

// Old versions come from an etcd in this process, and from the cache where etcd is elsewhere; the operator has the last word.
func TestSnapshotsOfTheCache(t *testing.T) {
	const gate = string(features.ListFromCacheSnapshot)
	client := func() *clientv3.Client { return nil }
	for what, test := range map[string]struct {
		config Config
		want   bool
	}{
		"etcd in this process":           {Config{EtcdClient: client, Settings: &Settings{}}, false},
		"etcd elsewhere":                 {Config{Settings: &Settings{}}, true},
		"etcd elsewhere by the settings": {Config{EtcdClient: client, Settings: &Settings{EtcdServers: []string{"https://192.0.2.1:2379"}}}, true},
		"switched on":                    {Config{EtcdClient: client, Settings: &Settings{FeatureGates: map[string]bool{gate: true, "Other": true}}}, true},
	} {
		gates := test.config.featureGates()
		if got := gates[gate]; got != test.want {
			t.Errorf("%s: %v, want %v", what, got, test.want)
		}
		if gates["Other"] != test.config.Settings.FeatureGates["Other"] {
			t.Errorf("%s: %v, want the settings' too", what, gates)
		}
	}
}
