// Command load is what the benchmark's pods run: servers that echo, and a client that asks two servers the same thing
// in turns, so that both have the same share of whatever else the machine does.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/strake-io/strake/tests/bench/turns"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("say `load serve` or `load client`")
	}
	f := flag.NewFlagSet(args[0], flag.ExitOnError)
	switch args[0] {
	case "serve":
		addr := f.String("listen", ":8080", "TCP and UDP address to echo on")
		f.Parse(args[1:])
		return serve(*addr)
	case "client":
		mode := f.String("mode", "connect", "connect, keepalive, stream, udp, udp-connected or dns")
		a := f.String("a", "", "address of the first server")
		b := f.String("b", "", "address of the second server")
		name := f.String("name", "", "name to ask for (dns)")
		workers := f.Int("workers", 1, "requests under way at a time")
		turn := f.Duration("turn", 200*time.Millisecond, "how long one server is asked before it is the other's turn")
		count := f.Int("turns", 20, "turns of each server")
		f.Parse(args[1:])
		open, err := opener(*mode, *name)
		if err != nil {
			return err
		}
		r, err := turns.Compare([2]string{*a, *b}, open, *workers, *turn, *count)
		if err != nil {
			return fmt.Errorf("%s: %w", *mode, err)
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	return fmt.Errorf("unknown command %q: say serve or client", args[0])
}
