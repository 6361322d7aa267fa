package apiserver

import (
	"runtime/debug"

	"k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/util/compatibility"
	basecompatibility "k8s.io/component-base/compatibility"
)

// ownVersion tells clients at /version which release's API this server speaks: that of the library it is built on,
// which no linker flag has to repeat.
type ownVersion struct {
	basecompatibility.EffectiveVersion
	git string
}

func newVersion() basecompatibility.EffectiveVersion {
	v := compatibility.DefaultBuildEffectiveVersion()
	// The libraries are v0.X.Y of Kubernetes v1.X.Y.
	git := "v" + v.BinaryVersion().WithPatch(0).String()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "k8s.io/apiserver" && len(m.Version) > 2 && m.Version[:3] == "v0." {
				git = "v1." + m.Version[3:]
			}
		}
	}
	return ownVersion{v, git + "+strake"}
}

func (v ownVersion) Info() *version.Info {
	info := v.EffectiveVersion.Info()
	info.GitVersion, info.GitCommit, info.GitTreeState, info.BuildDate = v.git, "", "", ""
	return info
}
