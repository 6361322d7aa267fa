package connectivity

import (
	"context"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// serve runs Serve on ports that are free now.
func serve(t *testing.T) (port int) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	t.Cleanup(func() { cancel(); done.Wait() })
	for range 20 {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		port = l.Addr().(*net.TCPAddr).Port
		l.Close()
		failed := make(chan error, 1)
		done.Go(func() { failed <- Serve(ctx, "me", port) })
		for {
			select {
			case err := <-failed:
				t.Log("another port: ", err)
			default:
				if r := Try(ctx, Probe{Kind: ProbeHTTP, Target: "127.0.0.1:" + strconv.Itoa(port), Within: time.Second}); r.Error != "" {
					time.Sleep(10 * time.Millisecond)
					continue
				}
				return port
			}
			break
		}
	}
	t.Fatal("no two ports are free")
	return 0
}

func TestProbes(t *testing.T) {
	port := serve(t)
	at := "127.0.0.1:" + strconv.Itoa(port)
	bulk := "127.0.0.1:" + strconv.Itoa(port+1)
	try := func(kind, target string) Result {
		return Try(t.Context(), Probe{Kind: kind, Target: target, Family: "IPv4", Within: 20 * time.Second})
	}
	if r := try(ProbeHTTP, at); r.Error != "" || r.Pod != "me" || r.Client != "127.0.0.1" {
		t.Errorf("HTTP: %+v", r)
	}
	if r := try(ProbeUDP, at); r.Error != "" || r.Bytes != 32+28 {
		t.Errorf("UDP: %+v", r)
	}
	if r := try(ProbeFull, at); r.Error != "" || r.Bytes < 1280 {
		t.Errorf("a full packet: %+v", r)
	}
	if r := try(ProbeLarge, at); r.Error != "" || r.Bytes != largeSize+28 {
		t.Errorf("a large packet: %+v", r)
	}
	if r := try(ProbeTCP, at); r.Error != "" {
		t.Errorf("TCP: %+v", r)
	}
	if r := try(ProbeTrips, bulk); r.Error != "" || r.Took <= 0 {
		t.Errorf("round trips: %+v", r)
	}
	if r := try(ProbeStream, bulk); r.Error != "" || r.BitsPerS <= 0 {
		t.Errorf("throughput: %+v", r)
	}
	if r := try("else", at); !strings.Contains(r.Error, "another release") {
		t.Errorf("an unknown probe: %+v", r)
	}
	if r := Try(t.Context(), Probe{Kind: ProbeTCP, Target: "127.0.0.1:1", Within: time.Second}); r.Error != "connection refused" {
		t.Errorf("a closed port: %+v", r)
	}
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	if r := Try(t.Context(), Probe{Kind: ProbeUDP, Target: silent.LocalAddr().String(), Within: 100 * time.Millisecond}); r.Error != "no answer" {
		t.Errorf("nobody answers: %+v", r)
	}
}

// TestSession asks many things at once, and then one after the other side has ended.
func TestSession(t *testing.T) {
	at := "127.0.0.1:" + strconv.Itoa(serve(t))
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		err := Answer(t.Context(), inR, outW)
		outW.CloseWithError(errors.New("the end"))
		inR.CloseWithError(errors.New("the end"))
		ended <- err
	}()
	s := newSession("p", inW, outR)
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if r, err := s.ask(t.Context(), Probe{Kind: ProbeHTTP, Target: at, Within: 20 * time.Second}); err != nil || r.Pod != "me" {
				t.Errorf("%+v, %v", r, err)
			}
		})
	}
	wg.Wait()
	inW.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := s.ask(t.Context(), Probe{}); err == nil {
		t.Error("an answer of nobody")
	}
}

func TestZone(t *testing.T) {
	for conf, want := range map[string]string{
		"search t.svc.example.org svc.example.org example.org\nnameserver 10.96.0.10\n": "example.org",
		"nameserver 10.96.0.10\nsearch\n":                                               "cluster.local", "": "cluster.local",
	} {
		if got := zoneOf(conf); got != want {
			t.Errorf("%q: %s, want %s", conf, got, want)
		}
	}
}
