// Command strake-cni is the node's CNI plugin. Called as "pause" it is the
// process that holds a pod's namespaces open.
package main

import (
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/strake-io/strake/cni/plugin"
)

func main() {
	if filepath.Base(os.Args[0]) == "pause" {
		pause()
		return
	}
	skel.PluginMainFuncs(plugin.Funcs(), plugin.Versions, "strake-cni: the pod network of a Strake node")
}
