package plugin

import (
	"encoding/json"
	"fmt"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
)

// PortMapping is one entry of the runtime configuration "portMappings" (CNI conventions, "Dynamic plugin specific fields").
type PortMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol,omitempty"` // tcp if empty
	HostIP        string `json:"hostIP,omitempty"`
}

// Bandwidth is the runtime configuration "bandwidth": limits in bits per second, zero for none. The bursts that come with it are not
// used: they follow from the rate, and runtimes that know only rates name the largest that there is.
type Bandwidth struct {
	Ingress uint64 `json:"ingressRate,omitempty"` // to the pod
	Egress  uint64 `json:"egressRate,omitempty"`  // from it
}

// Conf is the plugin's part of the network configuration.
type Conf struct {
	types.NetConf
	Socket string `json:"socket"`

	RuntimeConfig struct {
		PortMappings []PortMapping `json:"portMappings,omitempty"`
		Bandwidth    Bandwidth     `json:"bandwidth,omitempty"`

		// What others serve: an address, MAC or device that is asked for, and not given, is told.
		IPs            json.RawMessage `json:"ips,omitempty"`
		IPRanges       json.RawMessage `json:"ipRanges,omitempty"`
		MAC            json.RawMessage `json:"mac,omitempty"`
		DeviceID       json.RawMessage `json:"deviceID,omitempty"`
		InfinibandGUID json.RawMessage `json:"infinibandGUID,omitempty"`
	} `json:"runtimeConfig,omitempty"`
}

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

// supported refuses what an ADD would have to heed and does not (CNI 1.1, section "Error", code 2).
func (c *Conf) supported() error {
	unsupported := func(key string, value any) error {
		return types.NewError(types.ErrUnsupportedField, fmt.Sprintf("the network configuration's %s (%s) is not supported", key, value), "strake gives every pod addresses of its node's ranges by itself")
	}
	if c.IPAM.Type != "" {
		return unsupported("ipam.type", c.IPAM.Type)
	}
	for key, v := range map[string]json.RawMessage{
		"ips": c.RuntimeConfig.IPs, "ipRanges": c.RuntimeConfig.IPRanges, "mac": c.RuntimeConfig.MAC, "deviceID": c.RuntimeConfig.DeviceID, "infinibandGUID": c.RuntimeConfig.InfinibandGUID,
	} {
		switch string(v) {
		case "", "null", "[]", `""`:
		default:
			return unsupported("runtimeConfig."+key, v)
		}
	}
	return nil
}

// previous is the result of the plugins before this one, or, for CHECK, of them all; nil if there is none.
func (c *Conf) previous() (*types100.Result, error) {
	if c.RawPrevResult == nil {
		return nil, nil
	}
	invalid := func(err error) error {
		return types.NewError(types.ErrInvalidNetworkConfig, "prevResult is no result of CNI "+c.CNIVersion, err.Error())
	}
	if err := version.ParsePrevResult(&c.NetConf); err != nil {
		return nil, invalid(err)
	}
	r, err := types100.NewResultFromResult(c.PrevResult)
	if err != nil {
		return nil, invalid(err)
	}
	return r, nil
}
