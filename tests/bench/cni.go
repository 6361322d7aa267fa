package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/strake-io/strake/tests/podnet"
)

// runPlugin runs a plugin in a node's namespace as a runtime does, and returns the pod's address.
func runPlugin(node podnet.Space, plugin, conf, verb, id string, pod podnet.Space) (addr netip.Addr, err error) {
	c := exec.Command(plugin)
	c.Env = []string{"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + id, "CNI_NETNS=" + string(pod), "CNI_IFNAME=eth0", "CNI_PATH=" + plugins, "PATH=" + os.Getenv("PATH")}
	c.Stdin = bytes.NewReader([]byte(conf))
	var out, stderr bytes.Buffer
	c.Stdout, c.Stderr = &out, &stderr
	if err := node.In(c.Run); err != nil {
		return addr, fmt.Errorf("%s %s %s: %w: %s%s", filepath.Base(plugin), verb, id, err, out.Bytes(), stderr.Bytes())
	}
	if verb != "ADD" {
		return addr, nil
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal(out.Bytes(), &result); err != nil || len(result.IPs) == 0 {
		return addr, fmt.Errorf("%s ADD %s: result %s (%v)", filepath.Base(plugin), id, out.Bytes(), err)
	}
	return result.IPs[0].Address.Addr(), nil
}

func (n *bridgeNode) call(verb, id string, pod podnet.Space) (netip.Addr, error) {
	return runPlugin(n.space, filepath.Join(plugins, "bridge"), n.conf, verb, id, pod)
}

// manyPods is how many ADDs there are at once.
const manyPods = 200

// cniAdd takes the time of ADDs, one by one in turns with the rival's, and then of many at once.
func (b *bench) cniAdd(ctx context.Context) (err error) {
	l, err := podnet.New(1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := l.Start(); err != nil {
		return err
	}
	n := l.Nodes[0]
	plugin, err := filepath.Abs(filepath.Join(filepath.Dir(b.strake), "strake-cni"))
	if err != nil {
		return err
	}
	conf := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"strake","type":"strake-cni","socket":%q}`, n.Socket())
	rival, err := newBridgeNode(l, "bridge-node")
	if err != nil {
		return err
	}
	callers := [2]func(verb, id string, pod podnet.Space) (netip.Addr, error){
		func(verb, id string, pod podnet.Space) (netip.Addr, error) {
			return runPlugin(n.Space, plugin, conf, verb, id, pod)
		},
		rival.call,
	}
	took, deleted := [2][]float64{}, [2][]float64{}
	for i := -2; i < b.times(60); i++ { // two to warm up
		for half := range 2 {
			if err := ctx.Err(); err != nil {
				return err
			}
			side := (half + i&1) % 2
			id := fmt.Sprintf("one%d-%d", side, i+2)
			pod, err := l.Space(id)
			if err != nil {
				return err
			}
			began := time.Now()
			if _, err := callers[side]("ADD", id, pod); err != nil {
				return err
			}
			added := time.Now()
			if _, err := callers[side]("DEL", id, pod); err != nil {
				return err
			}
			if i >= 0 {
				took[side] = append(took[side], 1000*added.Sub(began).Seconds())
				deleted[side] = append(deleted[side], 1000*time.Since(added).Seconds())
			}
			if err := pod.Remove(); err != nil {
				return err
			}
		}
	}
	b.report.aim("CNI ADD, median", quantile(took[0], 0.5), "ms", atMost, 10)
	b.report.against("CNI ADD, median, against bridge + host-local", quantile(took[0], 0.5), quantile(took[1], 0.5), "ms", atMost, 0.333)
	b.report.against("CNI DEL, median", quantile(deleted[0], 0.5), quantile(deleted[1], 0.5), "ms", "", 0)
	var seconds [2]float64
	for side := range 2 {
		failed, elapsed, err := addMany(l, side, callers[side])
		if err != nil {
			return err
		}
		seconds[side] = elapsed
		if side == 0 {
			b.report.aim(fmt.Sprintf("CNI ADD, %d at once, failed", manyPods), float64(failed), "", atMost, 0)
		}
	}
	b.report.against(fmt.Sprintf("CNI ADD, %d at once, all done", manyPods), seconds[0], seconds[1], "s", "", 0)
	return nil
}

func addMany(l *podnet.Lab, side int, call func(verb, id string, pod podnet.Space) (netip.Addr, error)) (failed int, seconds float64, err error) {
	var pods []podnet.Space
	for i := range manyPods {
		pod, err := l.Space(fmt.Sprintf("many%d-%d", side, i))
		if err != nil {
			return 0, 0, err
		}
		pods = append(pods, pod)
	}
	errs := make([]error, manyPods)
	addrs := make([]netip.Addr, manyPods)
	var wg sync.WaitGroup
	began := time.Now()
	for i, pod := range pods {
		wg.Go(func() { addrs[i], errs[i] = call("ADD", fmt.Sprintf("many%d", i), pod) })
	}
	wg.Wait()
	seconds = time.Since(began).Seconds()
	seen := map[netip.Addr]bool{}
	for i := range pods {
		switch {
		case errs[i] != nil:
			failed++
			fmt.Fprintln(os.Stderr, "bench:", errs[i])
		case seen[addrs[i]]:
			return 0, 0, fmt.Errorf("two pods got %s", addrs[i])
		}
		seen[addrs[i]] = true
	}
	for i, pod := range pods {
		wg.Go(func() { _, errs[i] = call("DEL", fmt.Sprintf("many%d", i), pod) })
	}
	wg.Wait()
	return failed, seconds, errors.Join(errs...)
}
