package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/strake-io/strake/cmd/strake/layout"
)

// What --outside names is looked at before anything is deployed.
func TestOutsideIsAnAddress(t *testing.T) {
	reached := errors.New("the place was asked for")
	for outside, ok := range map[string]bool{
		"example.com:443": true, "[2001:db8::1]:53": true, "192.0.2.1:1": true,
		"example.com": false, "2001:db8::1:53": false, ":443": false, "example.com:": false, "example.com:0": false, "example.com:65536": false, "example.com:https": false,
	} {
		cmd := connectivityTestCommand(func() (layout.Layout, error) { return layout.Layout{}, reached })
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		cmd.SetArgs([]string{"--outside", outside})
		err := cmd.Execute()
		if passed := errors.Is(err, reached); passed != ok || !ok && !strings.Contains(err.Error(), "--outside "+outside) {
			t.Errorf("%s: %v", outside, err)
		}
	}
}
