package apiserver

import (
	"net/url"
	"testing"
)

func TestBracketed(t *testing.T) {
	for _, ip := range []string{"10.0.0.1", "fd00::5"} {
		u, err := url.Parse("http://" + bracketed(ip) + "/path")
		if err != nil || u.Hostname() != ip || u.Port() != "" {
			t.Errorf("%s: %s, %v", ip, u, err)
		}
	}
}
