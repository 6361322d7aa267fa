package main

import (
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"
	utilversion "k8s.io/apimachinery/pkg/util/version"
	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/component-base/version"
)

func versionCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  strake version\n  strake version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := ownVersion()
			return show(cmd.OutOrStdout(), output, v, func(w io.Writer) { fmt.Fprintln(w, v.GitVersion) })
		},
	}
	outputFlag(cmd, &output)
	return cmd
}

// ownVersion is the release, and the commit that it was built from.
func ownVersion() apiversion.Info {
	b, _ := debug.ReadBuildInfo()
	return stamped(version.Get(), b)
}

// stamped says of which commit a version is. That the go command writes into each program that it builds in a checkout, so no linker flag has to;
// without them the library says "$Format:%H$". A program built elsewhere says nothing.
func stamped(v apiversion.Info, b *debug.BuildInfo) apiversion.Info {
	v.GitCommit, v.GitTreeState, v.BuildDate = "", "", ""
	if release, err := utilversion.ParseGeneric(v.GitVersion); err == nil {
		v.Major, v.Minor = fmt.Sprint(release.Major()), fmt.Sprint(release.Minor())
	}
	if b == nil {
		return v
	}
	for _, s := range b.Settings {
		switch s.Key {
		case "vcs.revision":
			v.GitCommit = s.Value
		case "vcs.time":
			v.BuildDate = s.Value // the commit's, so that a build can be repeated
		case "vcs.modified":
			v.GitTreeState = map[string]string{"false": "clean", "true": "dirty"}[s.Value]
		}
	}
	return v
}
