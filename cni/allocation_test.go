package cni

import (
	"encoding/json"
	"reflect"
	"testing"
)

// What is read of a file is what would be written of it, and has what all others rely on.
func FuzzAllocation(f *testing.F) {
	for _, s := range []string{
		`{"containerID":"a","ifname":"eth0","addrs":["10.0.0.2","fd00::2"],"host":"stk1","ports":[{"addr":"192.0.2.1","port":80,"container":8080,"protocol":6}],"bandwidth":{"ingressRate":1000}}`,
		`{"containerID":"a","ifname":"eth0","addr":"10.0.0.2","host":"stk1"}`, `{"containerID":"a","ifname":"eth0","addrs":["::ffff:10.0.0.2"],"host":"h"}`,
		`{"containerID":"a","ifname":"eth0","addrs":["fe80::1%eth0"],"host":"h"}`, `{"addrs":[""]}`, `{`, `null`, `[]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := parseAllocation(data)
		if err != nil {
			return
		}
		if len(a.Addrs) == 0 || len(a.Addrs) > 2 || len(a.Addrs) == 2 && a.Addrs[0].Is4() == a.Addrs[1].Is4() {
			t.Errorf("%s gives %v", data, a.Addrs)
		}
		for _, addr := range a.Addrs {
			if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" {
				t.Errorf("%s gives %v", data, addr)
			}
		}
		text, err := json.Marshal(a)
		must(t, err)
		if again, err := parseAllocation(text); err != nil || !reflect.DeepEqual(again, a) {
			t.Errorf("%s is read as %+v, and that as %+v, %v", data, a, again, err)
		}
	})
}
