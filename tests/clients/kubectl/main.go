// Command kubectl is kubectl of an older release line, which make test-clients builds to try our API server with: of the line
// that go.mod names, or, by -modfile, of 1.33.mod, 1.34.mod or 1.35.mod.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
)

func main() { os.Exit(cli.Run(cmd.NewDefaultKubectlCommand())) }
