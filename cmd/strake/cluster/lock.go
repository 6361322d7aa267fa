package cluster

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/cmd/strake/layout"
)

// exclusive keeps other commands from bringing the same node up or down until release is called or the process ends. A name in the
// abstract namespace of unix sockets (unix(7)) holds it: no file is left behind.
func exclusive(l layout.Layout) (release func(), err error) {
	s, err := net.Listen("unix", "@strake-"+l.ID)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("another strake command brings the node in %s up or down: wait until it has ended", l.Data)
	}
	if err != nil {
		return nil, fmt.Errorf("lock of %s: %w", l.Data, err)
	}
	return func() { s.Close() }, nil
}
