package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
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
		"cniVersion": confVersion, "cniVersions": []string{confVersion, newestVersion}, "name": "strake", "plugins": []any{map[string]any{"type": "strake-cni", "socket": socket, "capabilities": map[string]bool{"portMappings": true}}},
	}, "", "  ")
	if err != nil {
		return fmt.Errorf("cni: configuration: %w", err)
	}
	if have, err := os.ReadFile(path); err == nil && bytes.Equal(have, want) {
		return nil
	}
	if err := writeFile(path, want); err != nil {
		return fmt.Errorf("cni: configuration: %w", err)
	}
	return nil
}
