package bpf

import (
	"errors"
	"slices"
)

// Rows are what all tables of a node hold.
type Rows struct {
	LoadBalancers []LoadBalancer
	Endpoints     []Endpoint
	Names         []Name
	Remotes       []Remote
}

// ReadRows reads the tables pinned below pinDir and changes nothing; no agent need run. A row that is being written meanwhile may show half
// a change.
func ReadRows(pinDir string) (Rows, error) {
	maps, done, err := openPins(pinDir, slices.Concat([]string{"endpoints", "limits", "remotes"}, namePins, lbPins))
	if err != nil {
		return Rows{}, err
	}
	defer done()
	var r Rows
	var errs [4]error
	r.LoadBalancers, errs[0] = (&loadBalancers{lbMaps: lbMapsOf(maps)}).Dump()
	endpoints, err := openEndpoints(maps)
	if err == nil {
		r.Endpoints, errs[1] = endpoints.Dump()
	}
	names, nameErr := openNames(maps, pinDir)
	if nameErr == nil {
		r.Names, errs[2] = names.Dump()
		defer names.more.close()
	}
	remotes, remoteErr := openRemotes(maps)
	if remoteErr == nil {
		r.Remotes, errs[3] = remotes.Dump()
	}
	return r, errors.Join(errs[0], errs[1], errs[2], errs[3], err, nameErr, remoteErr)
}
