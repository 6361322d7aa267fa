package plugin

import "testing"

// Whatever stands in a configuration ends in an error or in values, never in a panic; what is served has a socket.
func FuzzConf(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.1.0","name":"strake","socket":"/s","runtimeConfig":{"bandwidth":{"ingressRate":1000,"ingressBurst":4294967295},"portMappings":[{"hostPort":1}],"ips":["10.0.0.1/24"]}}`,
		`{"cniVersion":"0.3.1","socket":"/s","prevResult":{"cniVersion":"0.3.1","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"version":"4","interface":0,"address":"10.0.0.1/24"}]}}`,
		`{"cniVersion":"1.0.0","socket":"/s","prevResult":{"ips":[null]}}`, `{"socket":"/s","prevResult":{}}`, `{"cniVersion":"0.1.0","socket":"/s","prevResult":{"ip4":{"ip":"10.0.0.1/24"}}}`, `{`, `null`, `[]`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConf(data)
		if err != nil {
			return
		}
		if c.Socket == "" {
			t.Errorf("%s passed", data)
		}
		_ = c.supported()
		given := c.RawPrevResult != nil
		if r, err := c.previous(); err == nil && (r != nil) != given {
			t.Errorf("prevResult of %s: %v", data, r)
		}
	})
}
