package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/strake-io/strake/atomicfile"
	"github.com/strake-io/strake/cni/plugin"
)

// Versions of the configuration. The first is the newest that containerd 1.6 (Debian 12) reads, and what a runtime sees that knows no
// lists of versions; others take the highest that they know (CNI 1.1, cniVersions), and with it GC and STATUS.
const confVersion, newestVersion = "1.0.0", "1.1.0"

// confFile begins with a number because runtimes take the first file by name.
const confFile = "10-strake.conflist"

// WriteConfig tells the container runtime of the plugin. From then on the runtime calls the network ready.
func WriteConfig(dir, socket string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cni: configuration: %w", err)
	}
	path := filepath.Join(dir, confFile)
	want, err := json.MarshalIndent(map[string]any{
		"cniVersion": confVersion, "cniVersions": []string{confVersion, newestVersion}, "name": "strake", "plugins": []any{map[string]any{"type": plugin.Name, "socket": socket, "capabilities": map[string]bool{"portMappings": true, "bandwidth": true}}},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("cni: configuration: %w", err)
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
		return nil
	}
	if err := atomicfile.Write(path, want, 0o600); err != nil {
		return fmt.Errorf("cni: configuration: %w", err)
	}
	return nil
}

// rivals are plugins that do what strake-cni does by itself, by the runtime's capability.
var rivals = map[string]string{"portMappings": "portmap", "bandwidth": "bandwidth"}

// withoutRival refuses what a capability asks for if a rival stands in a list with strake-cni and is asked for the same: one of them has
// to go, and which one only the list's author can say.
func withoutRival(dir, capability string) error {
	files, err := filepath.Glob(filepath.Join(dir, "*.conflist"))
	if err != nil {
		return fmt.Errorf("cni: configuration: %w", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it went, or is none
		}
		var list struct {
			Plugins []struct {
				Type         string          `json:"type"`
				Capabilities map[string]bool `json:"capabilities"`
			} `json:"plugins"`
		}
		if json.Unmarshal(data, &list) != nil {
			continue // the runtime tells
		}
		given := map[string]bool{}
		for _, p := range list.Plugins {
			given[p.Type] = p.Capabilities[capability]
		}
		if rival := rivals[capability]; given[rival] && given[plugin.Name] {
			return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("%s gives %s to %s and to strake-cni, which serves them itself", file, capability, rival), fmt.Sprintf("remove %s from the list, or %q from the capabilities of one of them", rival, capability))
		}
	}
	return nil
}
