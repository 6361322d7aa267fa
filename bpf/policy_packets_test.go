package bpf

import (
	"testing"
)

// judged is a lab of which policies are asked.
func TestPolicyOnLoads(t *testing.T) {
	c := testConfig(t)
	c.Policy = true
	c.NodeAddrs = nil
	open(t, c)
}
