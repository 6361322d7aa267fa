package bpf

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// layoutVersion is raised when a map's layout changes.
const layoutVersion uint32 = 3

const versionPin = "layout_version"

// LayoutError says that the pinned maps are of another release.
type LayoutError struct {
	PinDir     string
	Have, Want uint32
}

func (e *LayoutError) Error() string {
	return fmt.Sprintf("bpf: maps in %s have layout %d, this release knows %d: run the release that made them, let it prepare them for this one (`strake migrate --to-layout %d`), or remove them with `strake down --purge`", e.PinDir, e.Have, e.Want, e.Want)
}

// checkVersion compares the version that is pinned beside the maps, and pins ours where there is none. The maps of an older release are
// brought to this layout; those of a newer one are refused.
func checkVersion(pinDir string) error {
	pin := filepath.Join(pinDir, versionPin)
	m, err := ebpf.LoadPinnedMap(pin, nil)
	if errors.Is(err, os.ErrNotExist) {
		if m, err = ebpf.NewMap(&ebpf.MapSpec{Name: versionPin, Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}); err != nil {
			return fmt.Errorf("bpf: version map: %w", err)
		}
		defer m.Close()
		if err := m.Put(uint32(0), layoutVersion); err != nil {
			return fmt.Errorf("bpf: version map: %w", err)
		}
		return m.Pin(pin)
	}
	if err != nil {
		return fmt.Errorf("bpf: %s: %w", pin, err)
	}
	defer m.Close()
	var have uint32
	if err := m.Lookup(uint32(0), &have); err != nil {
		return fmt.Errorf("bpf: %s: %w", pin, err)
	}
	if have > 0 && have < layoutVersion {
		if err := migrate(pinDir, have); err != nil {
			return err
		}
		have = layoutVersion
		if err := m.Put(uint32(0), have); err != nil {
			return fmt.Errorf("bpf: %s: %w", pin, err)
		}
	}
	if have != layoutVersion {
		return &LayoutError{PinDir: pinDir, Have: have, Want: layoutVersion}
	}
	return nil
}
