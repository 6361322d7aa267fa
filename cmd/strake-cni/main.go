// Command strake-cni is the node's CNI plugin, and all else that must be small. Its name decides what it is: called
// as "pause" it is the process that holds a pod's namespaces open, called as "loopback" it is the plugin of that name,
// which container runtimes expect, and as "strake-supervise" it keeps the processes of `strake up` running.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/strake-io/strake/cmd/strake/supervisor"
	"github.com/strake-io/strake/cni/plugin"
)

func main() {
	switch filepath.Base(os.Args[0]) {
	case "pause":
		pause()
	case supervisor.Program:
		if err := supervise(os.Args[1:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", supervisor.Program, err)
			os.Exit(1)
		}
	case "loopback":
		skel.PluginMainFuncs(plugin.LoopbackFuncs(), plugin.Versions, "strake-cni as loopback: sets lo up")
	default:
		skel.PluginMainFuncs(plugin.Funcs(), plugin.Versions, "strake-cni: the pod network of a Strake node")
	}
}
