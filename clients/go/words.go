package pseudoword

import (
	"context"
	"crypto/rand"
	"fmt"

	registryv1 "github.com/pseudoword/pseudoword/clients/go/gen/pseudoword/registry/v1"
)

// Resolve returns the version that `[tenant/]concept[@alias|@n]` means now, without its loss curve and recipe.
func (c *Client) Resolve(ctx context.Context, word string) (*registryv1.Version, error) {
	answer, err := c.Registry.ResolveWords(ctx, &registryv1.ResolveWordsRequest{Parent: c.tenant, Words: []string{word}})
	if err != nil {
		return nil, FromCall(err)
	}
	if len(answer.GetWords()) != 1 {
		return nil, damaged("the registry answered for another number of words than were asked")
	}
	resolved := answer.GetWords()[0]
	if resolved.GetError() != nil {
		return nil, FromStatus(resolved.GetError())
	}
	return resolved.GetVersion(), nil
}

// Versions returns all versions of a concept, newest first, without their loss curves and recipes.
func (c *Client) Versions(ctx context.Context, concept string) ([]*registryv1.Version, error) {
	var versions []*registryv1.Version
	request := &registryv1.ListVersionsRequest{Parent: c.concept(concept)}
	for {
		page, err := c.Registry.ListVersions(ctx, request)
		if err != nil {
			return nil, FromCall(err)
		}
		versions = append(versions, page.GetVersions()...)
		if page.GetNextPageToken() == "" {
			return versions, nil
		}
		request.PageToken = page.GetNextPageToken()
	}
}

// AliasOptions says under which condition an alias is moved, and why.
type AliasOptions struct {
	// Etag, where not empty, must be the alias's present one.
	Etag string
	// Reason is kept in the alias's history.
	Reason string
}

// SetAlias points an alias of a concept at one of its versions, creating the alias where it is new.
func (c *Client) SetAlias(
	ctx context.Context, concept, alias string, version int64, options AliasOptions,
) (*registryv1.Alias, error) {
	owner := c.concept(concept)
	set, err := c.Registry.SetAlias(ctx, &registryv1.SetAliasRequest{
		Alias: &registryv1.Alias{
			Name:    fmt.Sprintf("%s/aliases/%s", owner, alias),
			Version: fmt.Sprintf("%s/versions/%d", owner, version),
			Etag:    options.Etag,
		},
		Reason:    options.Reason,
		RequestId: rand.Text(),
	})
	return set, FromCall(err)
}

// concept is the resource name of a concept of the client's tenant; the servers check its form.
func (c *Client) concept(id string) string { return c.tenant + "/concepts/" + id }
