package main

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/strake-io/strake/tests/bench/turns"
	"github.com/strake-io/strake/tests/podnet"
)

// workerVariable makes this program a worker: a client in a namespace and a cgroup, which the socket hooks go by. It asks as it is told on
// its standard input.
const workerVariable = "STRAKE_BENCH_WORKER"

// What a worker does in a turn.
const (
	modeConnect = "connect" // a connection for each request, reset after its answer
	modeRequest = "request" // a byte there and back, over a connection that stays
	modeStream  = "stream"  // blocks, each acknowledged
)

// order is what a worker is told.
type order struct {
	Mode    string
	To      netip.AddrPort
	Ports   int // how many from To's on: each connection goes to one of them
	AtOnce  int // how many ask at the same time
	Seconds float64
}

// outcome is what it tells.
type outcome struct {
	Samples []time.Duration
	Elapsed time.Duration
	Err     string
}

// worker is a process that asks.
type worker struct {
	in    io.WriteCloser
	tell  *gob.Encoder
	heard *gob.Decoder
	cmd   *exec.Cmd
}

// startWorker starts one in a namespace, as a process of the cgroup if there is one.
func startWorker(s podnet.Space, cgroup string) (*worker, error) {
	c := exec.Command("/proc/self/exe")
	c.Env = append(os.Environ(), workerVariable+"=1", "GODEBUG=asyncpreemptoff=1") // a signal would interrupt connect(2)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if cgroup != "" {
		dir, err := os.Open(cgroup)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	if err := s.In(c.Start); err != nil {
		return nil, err
	}
	return &worker{in: in, tell: gob.NewEncoder(in), heard: gob.NewDecoder(out), cmd: c}, nil
}

func (w *worker) stop() error {
	w.in.Close()
	return w.cmd.Wait()
}

// way asks by this worker in turns.Rotate.
func (w *worker) way(name string, o order) turns.Way {
	return turns.Way{Name: name, Turn: func(turn time.Duration) ([]time.Duration, time.Duration, error) {
		o.Seconds = turn.Seconds()
		if err := w.tell.Encode(o); err != nil {
			return nil, 0, err
		}
		var out outcome
		if err := w.heard.Decode(&out); err != nil {
			return nil, 0, err
		}
		if out.Err != "" {
			return nil, 0, errors.New(out.Err)
		}
		return out.Samples, out.Elapsed, nil
	}}
}

// work is a worker's process; it does not return in one.
func work() {
	if os.Getenv(workerVariable) == "" {
		return
	}
	// A thread that waits in the kernel keeps its P for a while: with more of them nobody waits for one.
	runtime.GOMAXPROCS(32)
	sessions := map[order][]turns.Session{}
	tell, heard := gob.NewEncoder(os.Stdout), gob.NewDecoder(os.Stdin)
	for {
		var o order
		if heard.Decode(&o) != nil {
			os.Exit(0)
		}
		seconds := o.Seconds
		o.Seconds = 0
		out, err := obey(sessions, o, time.Duration(seconds*float64(time.Second)))
		if err != nil {
			out.Err = fmt.Sprintf("%s to %s: %v", o.Mode, o.To, err)
		}
		if tell.Encode(out) != nil {
			os.Exit(0)
		}
	}
}

func obey(sessions map[order][]turns.Session, o order, turn time.Duration) (outcome, error) {
	for len(sessions[o]) < o.AtOnce {
		s, err := session(o)
		if err != nil {
			return outcome{}, err
		}
		sessions[o] = append(sessions[o], s)
	}
	samples, errs := make([][]time.Duration, o.AtOnce), make([]error, o.AtOnce)
	began := time.Now()
	var wg sync.WaitGroup
	for i, s := range sessions[o] {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			mine := make([]time.Duration, 0, 1<<10)
			for last := began; last.Sub(began) < turn && errs[i] == nil; {
				errs[i] = s.Ask()
				now := time.Now()
				mine = append(mine, now.Sub(last))
				last = now
			}
			samples[i] = mine
		})
	}
	wg.Wait()
	return outcome{Samples: slices.Concat(samples...), Elapsed: time.Since(began)}, errors.Join(errs...)
}

func session(o order) (turns.Session, error) {
	switch o.Mode {
	case modeConnect:
		return connector(o), nil
	case modeRequest, modeStream:
		c, err := dial(o.To)
		if err != nil {
			return nil, err
		}
		size := requestSize
		if o.Mode == modeStream {
			size = blockSize
		}
		// The first byte tells the server what is to come.
		if err := c.write([]byte(o.Mode[:1])); err != nil {
			return nil, err
		}
		return &asker{conn: c, out: make([]byte, size)}, c.read(make([]byte, 1), 1)
	}
	return nil, fmt.Errorf("no mode %q", o.Mode)
}

// connector asks over a connection for each request.
type connector order

// Ask implements turns.Session.
func (o connector) Ask() error {
	c, err := dial(netip.AddrPortFrom(o.To.Addr(), o.To.Port()+uint16(rand.IntN(o.Ports))))
	if err != nil {
		return err
	}
	defer c.close()
	// Reset at close: with TIME_WAIT the local ports would be used up.
	b := []byte(modeConnect[:1])
	return errors.Join(unix.SetsockoptLinger(int(c), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), c.write(b), c.read(b, 1))
}

// echo starts a server of workers in a namespace, at a port of every address; accepted, if there is one, is called for each connection.
func echo(s podnet.Space, port int, accepted func()) (stop func(), err error) {
	var l int
	err = s.In(func() error {
		if l, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(l, &unix.SockaddrInet4{Port: port}), unix.Listen(l, 1024))
	})
	if err != nil {
		return nil, fmt.Errorf("listen on port %d: %w", port, err)
	}
	go func() {
		runtime.LockOSThread()
		b := make([]byte, 1)
		for {
			fd, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err == unix.EINTR || err == unix.ECONNABORTED {
				continue
			}
			if err != nil {
				unix.Close(l)
				return
			}
			if accepted != nil {
				accepted()
			}
			c := conn(fd)
			// A client that went is no concern of the server's.
			if c.read(b, 1) == nil && c.write(b) == nil && b[0] != modeConnect[0] {
				go c.serve(b[0] == modeStream[0])
				continue
			}
			c.close()
		}
	}()
	return func() { unix.Shutdown(l, unix.SHUT_RDWR) }, nil
}

// serve answers until the client goes.
func (c conn) serve(stream bool) {
	defer c.close()
	unix.SetsockoptInt(int(c), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	ask := requestSize
	if stream {
		ask = blockSize
	}
	in := make([]byte, min(ask, 1<<18))
	for c.read(in, ask) == nil && c.write(in[:1]) == nil {
	}
}
