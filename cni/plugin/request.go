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
	Verb        string   `json:"verb"` // ADD, DEL, CHECK, GC, STATUS
	ContainerID string   `json:"containerID,omitempty"`
	Netns       string   `json:"netns,omitempty"`
	Ifname      string   `json:"ifname,omitempty"`
	Args        string   `json:"args,omitempty"`
	Valid       []string `json:"valid,omitempty"` // GC: "containerID/ifname" of what is to stay

	Ports []PortMapping `json:"ports,omitempty"` // ADD
}

// PortMapping is one entry of the runtime configuration "portMappings" (CNI conventions, "Dynamic plugin specific fields").
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty"` // tcp if empty
	HostIP        string `json:"hostIP,omitempty"`
}

// Response is the agent's answer, one JSON value: a result or an error.
type Response struct {
	Result *types100.Result `json:"result,omitempty"`
	Error  *types.Error     `json:"error,omitempty"`
}

// Conf is the plugin's part of the network configuration.
type Conf struct {
	types.NetConf
	Socket string `json:"socket"`

	RuntimeConfig struct {
		PortMappings []PortMapping `json:"portMappings,omitempty"`
	} `json:"runtimeConfig,omitempty"`
}

// Versions that the plugin speaks.
var Versions = version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")

// ErrUnavailable is the error code of STATUS when no ADD can succeed (CNI 1.1, section STATUS).
const ErrUnavailable = 50

// callTimeout is longer than any call of the agent takes.
const callTimeout = 60 * time.Second

// ParseConf reads the configuration that the runtime passes on standard input.
func ParseConf(data []byte) (*Conf, error) {
	c := &Conf{}
	if err := decode(data, c); err != nil {
		return nil, err
	}
	if c.Socket == "" {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "the network configuration names no socket", `set "socket" to the path of the agent's`)
	}
	return c, nil
}

func decode(data []byte, conf any) error {
	if err := json.Unmarshal(data, conf); err != nil {
		return types.NewError(types.ErrDecodingFailure, "the network configuration is not what CNI says it is", err.Error())
	}
	return nil
}

// Funcs are the verbs of CNI 1.1.
func Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: func(a *skel.CmdArgs) error {
			c, err := ParseConf(a.StdinData)
			if err != nil {
				return err
			}
			resp, err := call(c, Request{Verb: "ADD", ContainerID: a.ContainerID, Netns: a.Netns, Ifname: a.IfName, Args: a.Args, Ports: c.RuntimeConfig.PortMappings})
			if err != nil {
				return err
			}
			if resp.Result == nil {
				return types.NewError(types.ErrInternal, "the agent answered ADD without a result", "")
			}
			return types.PrintResult(resp.Result, c.CNIVersion)
		},
		Del:    func(a *skel.CmdArgs) error { return simple(a, "DEL") },
		Check:  func(a *skel.CmdArgs) error { return simple(a, "CHECK") },
		GC:     gc,
		Status: func(a *skel.CmdArgs) error { return simple(a, "STATUS") },
	}
}

func simple(a *skel.CmdArgs, verb string) error {
	c, err := ParseConf(a.StdinData)
	if err != nil {
		return err
	}
	_, err = call(c, Request{Verb: verb, ContainerID: a.ContainerID, Netns: a.Netns, Ifname: a.IfName, Args: a.Args})
	return err
}

// gc passes on what is to stay. A configuration without the list is refused: read as an empty one it would take the
// network of every pod of the node.
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
	_, err = call(c, r)
	return err
}

// call asks the agent. One that is away is a passing condition: the runtime tries again.
func call(c *Conf, r Request) (*Response, error) {
	conn, err := net.DialTimeout("unix", c.Socket, 5*time.Second)
	if err != nil {
		code := types.ErrTryAgainLater
		if r.Verb == "STATUS" {
			code = ErrUnavailable
		}
		return nil, types.NewError(code, "the strake agent does not answer", fmt.Sprintf("%v: is `strake agent` running?", err))
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return nil, types.NewError(types.ErrIOFailure, "socket of the agent", err.Error())
	}
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return nil, types.NewError(types.ErrTryAgainLater, "the strake agent takes no request", err.Error())
	}
	var resp Response
	if err := json.NewDecoder(conn).Decode(&resp); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it hung up")
		}
		return nil, types.NewError(types.ErrTryAgainLater, "the strake agent gave no answer", err.Error())
	}
	if resp.Error != nil {
		return nil, resp.Error
	}
	return &resp, nil
}
