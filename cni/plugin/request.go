// Package plugin is what the strake-cni binary does: it hands the runtime's call
// to the node's agent over a unix socket and returns its answer. It knows no
// Kubernetes and no BPF, so that it starts in milliseconds.
package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// Request is one call, as it goes to the agent: one JSON value.
type Request struct {
	Verb        string           `json:"verb"` // ADD, DEL, CHECK, GC, STATUS
	ContainerID string           `json:"containerID,omitempty"`
	Netns       string           `json:"netns,omitempty"`
	Ifname      string           `json:"ifname,omitempty"`
	Args        string           `json:"args,omitempty"`
	Prev        *types100.Result `json:"prev,omitempty"`  // ADD: of the plugins before; CHECK: of ADD
	Valid       []string         `json:"valid,omitempty"` // GC: "containerID/ifname" of what is to stay

	// Of ADD.
	Ports     []PortMapping `json:"ports,omitempty"`
	Bandwidth Bandwidth     `json:"bandwidth,omitzero"`
}

// Response is the agent's answer, one JSON value: a result or an error.
type Response struct {
	Result *types100.Result `json:"result,omitempty"`
	Error  *types.Error     `json:"error,omitempty"`
}

// Name of the plugin, and of its binary.
const Name = "strake-cni"

// Versions that the plugin speaks.
var Versions = version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")

// callTimeout is longer than any call of the agent takes.
const callTimeout = 60 * time.Second

// agentWait is how long a call that changes something waits for an agent that is away. One that restarts is back sooner; without the
// wait each call in between costs a pod its sandbox, which the runtime makes anew for the next try.
const agentWait = 5 * time.Second

// Funcs are the verbs of CNI 1.1.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add:    add,
		Del:    func(a *skel.CmdArgs) error { return simple(a, Request{Verb: "DEL"}) },
		Check:  check,
		GC:     gc,
		Status: func(a *skel.CmdArgs) error { return simple(a, Request{Verb: "STATUS"}) },
	}
}

func add(a *skel.CmdArgs) error {
	c, err := ParseConf(a.StdinData)
	if err != nil {
		return err
	}
	if err := c.supported(); err != nil {
		return err
	}
	prev, err := c.previous()
	if err != nil {
		return err
	}
	resp, err := call(c, a, Request{Verb: "ADD", Prev: prev, Ports: c.RuntimeConfig.PortMappings, Bandwidth: c.RuntimeConfig.Bandwidth})
	if err != nil {
		return err
	}
	if resp.Result == nil {
		return types.NewError(types.ErrInternal, "the agent answered ADD without a result", "")
	}
	if !c.DNS.IsEmpty() {
		resp.Result.DNS = c.DNS
	}
	return types.PrintResult(resp.Result, c.CNIVersion)
}

func check(a *skel.CmdArgs) error {
	c, err := ParseConf(a.StdinData)
	if err != nil {
		return err
	}
	prev, err := c.previous()
	if err != nil {
		return err
	}
	_, err = call(c, a, Request{Verb: "CHECK", Prev: prev})
	return err
}

func simple(a *skel.CmdArgs, r Request) error {
	c, err := ParseConf(a.StdinData)
	if err != nil {
		return err
	}
	_, err = call(c, a, r)
	return err
}

// gc passes on what is to stay. A configuration without the list is refused: read as an empty one it would take the
// network of every pod of the node. (null is an empty list: so libcni writes it.)
func gc(a *skel.CmdArgs) error {
	c, err := ParseConf(a.StdinData)
	if err != nil {
		return err
	}
	keys := map[string]json.RawMessage{}
	if err := decode(a.StdinData, &keys); err != nil {
		return err
	}
	const list = "cni.dev/valid-attachments"
	if _, ok := keys[list]; !ok {
		return types.NewError(types.ErrInvalidNetworkConfig, "GC without "+list, "")
	}
	r := Request{Verb: "GC"}
	for _, v := range c.ValidAttachments {
		r.Valid = append(r.Valid, v.ContainerID+"/"+v.IfName)
	}
	_, err = call(c, a, r)
	return err
}

// dial connects to the agent.
func dial(socket string, wait time.Duration) (net.Conn, error) {
	for deadline := time.Now().Add(wait); ; time.Sleep(20 * time.Millisecond) {
		conn, err := net.DialTimeout("unix", socket, 5*time.Second)
		if err == nil || time.Now().After(deadline) {
			return conn, err
		}
	}
}

// call asks the agent. One that is away is a passing condition: the runtime tries again.
func call(c *Conf, a *skel.CmdArgs, r Request) (*Response, error) {
	r.ContainerID, r.Netns, r.Ifname, r.Args = a.ContainerID, a.Netns, a.IfName, a.Args
	away, wait := types.ErrTryAgainLater, agentWait
	switch r.Verb {
	case "STATUS":
		away, wait = types.ErrPluginNotAvailable, 0
	case "CHECK":
		wait = 0
	}
	conn, err := dial(c.Socket, wait)
	if err != nil {
		return nil, types.NewError(away, "the strake agent does not answer at "+c.Socket, fmt.Sprintf("%v: is `strake agent` running?", err))
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return nil, types.NewError(types.ErrIOFailure, "socket of the agent", err.Error())
	}
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return nil, types.NewError(away, "the strake agent takes no request at "+c.Socket, err.Error())
	}
	var resp Response
	if err := json.NewDecoder(conn).Decode(&resp); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it hung up")
		}
		return nil, types.NewError(away, "the strake agent gave no answer at "+c.Socket, err.Error())
	}
	if resp.Error != nil {
		return nil, resp.Error
	}
	return &resp, nil
}
