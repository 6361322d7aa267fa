package main

import (
	"runtime/debug"
	"testing"

	apiversion "k8s.io/apimachinery/pkg/version"
)

func TestVersionNamesItsCommit(t *testing.T) {
	library := apiversion.Info{GitVersion: "v1.37.2+strake", GitCommit: "$Format:%H$", BuildDate: "1970-01-01T00:00:00Z"}
	checkout := &debug.BuildInfo{Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "791b37e"}, {Key: "vcs.time", Value: "2026-11-22T05:14:22Z"}, {Key: "vcs.modified", Value: "true"}}}
	want := apiversion.Info{Major: "1", Minor: "37", GitVersion: "v1.37.2+strake", GitCommit: "791b37e", GitTreeState: "dirty", BuildDate: "2026-11-22T05:14:22Z"}
	if got := stamped(library, checkout); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	want = apiversion.Info{Major: "1", Minor: "37", GitVersion: "v1.37.2+strake"}
	for _, b := range []*debug.BuildInfo{nil, {}} { // built outside of a checkout
		if got := stamped(library, b); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}
